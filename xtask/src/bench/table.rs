//! The result: rows with what must be reached, what was measured, beside what, and whether it holds.

use serde::Serialize;

/// What a row is judged by.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Goal {
    /// of the measured value
    AtMost(f64),
    AtLeast(f64),
    /// of the ratio to the peer
    RatioAtMost(f64),
    RatioAtLeast(f64),
    /// nothing: a number to look at
    Shown,
}

#[derive(Debug, Clone, Serialize)]
pub struct Row {
    pub what: String,
    pub goal: Goal,
    pub measured: f64,
    /// of `measured` and `peer`
    pub unit: &'static str,
    /// measured in the same run; what it is stands in `beside`
    pub peer: Option<f64>,
    /// what the peer is, or figures recorded elsewhere, named so
    pub beside: String,
}

impl Row {
    pub fn at_most(what: impl Into<String>, limit: f64, measured: f64, unit: &'static str) -> Self {
        Self {
            what: what.into(),
            goal: Goal::AtMost(limit),
            measured,
            unit,
            peer: None,
            beside: String::new(),
        }
    }

    pub fn at_least(what: impl Into<String>, limit: f64, measured: f64, unit: &'static str) -> Self {
        let goal = Goal::AtLeast(limit);
        Self { what: what.into(), goal, measured, unit, peer: None, beside: String::new() }
    }

    pub fn shown(what: impl Into<String>, measured: f64, unit: &'static str) -> Self {
        Self { what: what.into(), goal: Goal::Shown, measured, unit, peer: None, beside: String::new() }
    }

    pub fn ratio(what: impl Into<String>, goal: Goal, measured: f64, unit: &'static str, peer: f64) -> Self {
        Self { what: what.into(), goal, measured, unit, peer: Some(peer), beside: String::new() }
    }

    pub fn beside(mut self, text: impl Into<String>) -> Self {
        self.beside = text.into();
        self
    }

    pub fn ratio_value(&self) -> Option<f64> {
        self.peer.filter(|peer| *peer != 0.0).map(|peer| self.measured / peer)
    }

    /// Whether the goal is reached; none without one.
    pub fn holds(&self) -> Option<bool> {
        // what could not be measured reaches nothing
        let ratio = || self.ratio_value().unwrap_or(f64::NAN);
        match self.goal {
            Goal::AtMost(limit) => Some(self.measured <= limit),
            Goal::AtLeast(limit) => Some(self.measured >= limit),
            Goal::RatioAtMost(limit) => Some(ratio() <= limit),
            Goal::RatioAtLeast(limit) => Some(ratio() >= limit),
            Goal::Shown => None,
        }
    }

    fn cells(&self) -> [String; 7] {
        let goal = match self.goal {
            Goal::AtMost(limit) => format!("<= {}", number(limit)),
            Goal::AtLeast(limit) => format!(">= {}", number(limit)),
            Goal::RatioAtMost(limit) => format!("ratio <= {}", number(limit)),
            Goal::RatioAtLeast(limit) => format!("ratio >= {}", number(limit)),
            Goal::Shown => "shown".to_owned(),
        };
        let verdict = match self.holds() {
            Some(true) => "ok",
            Some(false) => "falls short",
            None => "",
        };
        [
            self.what.clone(),
            goal,
            format!("{} {}", number(self.measured), self.unit).trim().to_owned(),
            self.peer
                .map_or_else(String::new, |peer| format!("{} {}", number(peer), self.unit).trim().to_owned()),
            self.ratio_value().map_or_else(String::new, |ratio| format!("{ratio:.3}")),
            verdict.to_owned(),
            self.beside.clone(),
        ]
    }
}

/// Three digits that count.
fn number(value: f64) -> String {
    match value.abs() {
        value if value.fract() == 0.0 && value < 1e7 => format!("{value:.0}"),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// Markdown, aligned, so that it reads well in a terminal and in a document.
pub fn render(rows: &[Row]) -> String {
    let head = ["what", "must reach", "measured", "beside it", "ratio", "", "beside what"].map(str::to_owned);
    let mut lines = vec![head];
    lines.extend(rows.iter().map(Row::cells));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        let cells: Vec<String> =
            line.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        text.push_str(&format!("| {} |\n", cells.join(" | ")));
        if index == 0 {
            let rule: Vec<String> = widths.iter().map(|width| "-".repeat((*width).max(3))).collect();
            text.push_str(&format!("| {} |\n", rule.join(" | ")));
        }
    }
    text
}

/// The middle of an odd number of values, the mean of the two middle ones otherwise.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_does_not_hold() {
        assert_eq!(Row::at_most("a", 1.0, f64::NAN, "ms").holds(), Some(false));
        assert_eq!(Row::ratio("a", Goal::RatioAtLeast(1.0), 5.0, "MiB/s", 0.0).holds(), Some(false));
        assert_eq!(Row::ratio("a", Goal::RatioAtMost(0.4), 3.0, "s", 10.0).holds(), Some(true));
        assert_eq!(Row::shown("a", 3.0, "").holds(), None);
    }

    #[test]
    fn the_table_is_aligned() {
        let text =
            render(&[Row::at_most("exits", 3000.0, 32140.0, "").beside("Firecracker, recorded: 3,331")]);
        let lengths: Vec<usize> = text.lines().map(|line| line.chars().count()).collect();
        assert!(lengths.iter().all(|length| *length == lengths[0]), "{text}");
        assert!(text.contains("falls short"));
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0]), 2.5);
        assert!(median(&[]).is_nan());
    }
}
