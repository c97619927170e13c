//! Sizes, times, CPUs and pairs as people write them. Everything that is not a plain decimal number with a known unit
//! is refused: no sign, no exponent, no NaN, no infinity, nothing that overflows, nothing outside the field's limits.

use pinfold_domain::spec::limits;
use std::time::Duration;

const KIB: u128 = 1024;
const SIZE_UNITS: &[(&str, u128)] = &[
    ("KiB", KIB),
    ("MiB", KIB * KIB),
    ("GiB", KIB * KIB * KIB),
    ("TiB", KIB * KIB * KIB * KIB),
    ("kB", 1000),
    ("KB", 1000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
    ("", 1),
];
const TIME_UNITS_MS: &[(&str, u128)] =
    &[("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A decimal number with a unit, in thousandths of the unit's factor: exact, no floating point.
fn scaled(text: &str, units: &[(&str, u128)], what: &str, example: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits_end);
    if text.starts_with('-') {
        return Err(format!("a {what} cannot be negative"));
    }
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let malformed = || format!("it is not a {what}: write it like {example}");
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') {
        return Err(malformed());
    }
    let unit = unit.trim();
    let Some(&(_, factor)) = units.iter().find(|(name, _)| *name == unit) else {
        let known: Vec<&str> = units.iter().map(|(name, _)| *name).filter(|name| !name.is_empty()).collect();
        return Err(format!("{unit:?} is not a unit of a {what}: use one of {}", known.join(", ")));
    };
    let too_large = || format!("it is larger than any {what} can be ({})", u64::MAX);
    let whole: u128 =
        if whole.is_empty() { 0 } else { whole.parse::<u64>().map_err(|_| too_large())?.into() };
    // more than nine decimals cannot matter
    let fraction = &fraction[..fraction.len().min(9)];
    let divisor = 10_u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| malformed())? };
    let value = (whole * divisor + fraction).checked_mul(factor).ok_or_else(too_large)? / divisor;
    u64::try_from(value).map_err(|_| too_large())
}

fn bounded(value: u64, (min, max): (u64, u64), show: impl Fn(u64) -> String) -> Result<u64, String> {
    if (min..=max).contains(&value) {
        return Ok(value);
    }
    Err(format!("{} is outside the limits {} to {}", show(value), show(min), show(max)))
}

/// `256MiB`, `1.5GiB`, `1000000`.
fn size(text: &str) -> Result<u64, String> {
    scaled(text, SIZE_UNITS, "size", "256MiB or 1.5GiB")
}

pub fn memory(text: &str) -> Result<u64, String> {
    bounded(size(text)?, limits::MEMORY_BYTES, format_size)
}

pub fn disk(text: &str) -> Result<u64, String> {
    bounded(size(text)?, limits::DISK_BYTES, format_size)
}

/// Bytes per second.
pub fn rate(text: &str) -> Result<u64, String> {
    bounded(size(text)?, (1024 * 1024, u64::MAX / 2), format_size)
}

/// `0.5`, `2` or `500m`, in thousandths.
pub fn cpus(text: &str) -> Result<u64, String> {
    let units: &[(&str, u128)] = &[("", 1000), ("m", 1)];
    let value = scaled(text, units, "number of CPUs", "0.5, 2 or 500m")?;
    bounded(value, limits::CPU_MILLIS, format_cpus)
}

pub fn pids(text: &str) -> Result<u64, String> {
    let value = scaled(text, &[("", 1)], "number of processes", "512")?;
    if text.contains('.') {
        return Err("it is not a whole number".to_owned());
    }
    bounded(value, limits::PIDS, |value| value.to_string())
}

/// `90s`, `1h30m`, `250ms`; a plain number is seconds.
fn milliseconds(text: &str) -> Result<u64, String> {
    const EXAMPLE: &str = "90s, 1h30m or 250ms";
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return scaled(text, &[("", 1000)], "time", EXAMPLE);
    }
    let mut total: u64 = 0;
    let mut rest = text;
    loop {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let unit_end =
            rest[unit_at..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| unit_at + at);
        let part = scaled(&rest[..unit_end], TIME_UNITS_MS, "time", EXAMPLE)?;
        total = total.checked_add(part).ok_or("it is larger than any time can be")?;
        rest = &rest[unit_end..];
        if rest.is_empty() {
            return Ok(total);
        }
    }
}

/// A time in whole seconds within `limits`.
fn seconds(text: &str, limits: (u64, u64)) -> Result<Duration, String> {
    let millis = milliseconds(text)?;
    let limits_ms = (limits.0 * 1000, limits.1 * 1000);
    let millis = bounded(millis, limits_ms, format_millis)?;
    if !millis.is_multiple_of(1000) {
        return Err(format!("{} is not a whole number of seconds", format_millis(millis)));
    }
    Ok(Duration::from_millis(millis))
}

pub fn ttl(text: &str) -> Result<Duration, String> {
    seconds(text, limits::TTL_SECONDS)
}

pub fn start_timeout(text: &str) -> Result<Duration, String> {
    seconds(text, limits::START_TIMEOUT_SECONDS)
}

/// A grace period: up to ten minutes, 0 is allowed.
pub fn grace(text: &str) -> Result<Duration, String> {
    seconds(text, (0, 600))
}

/// A time limit of a process: 1 ms to 30 days.
pub fn timeout(text: &str) -> Result<Duration, String> {
    bounded(milliseconds(text)?, (1, 30 * 86_400_000), format_millis).map(Duration::from_millis)
}

/// `key=value`. The alphabet is checked by the server, which knows every rule.
pub fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some(("", _)) => Err("the key before `=` is empty".to_owned()),
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err("it has no `=`: write it like key=value".to_owned()),
    }
}

/// `key=value`, or `key` alone.
pub fn label_filter(text: &str) -> Result<(String, String), String> {
    if text.contains('=') { pair(text) } else { pair(&format!("{text}=")) }
}

/// `1.5 GiB`: the largest unit in which the number is at least 1, at most one decimal.
pub fn format_size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut unit = 0;
    while unit + 1 < units.len() && bytes >> (10 * (unit + 1)) > 0 {
        unit += 1;
    }
    let scale = 1_u128 << (10 * unit);
    let tenths = u128::from(bytes) * 10 / scale;
    if tenths.is_multiple_of(10) {
        format!("{} {}", tenths / 10, units[unit])
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
    }
}

/// `0.5`, `2`.
pub fn format_cpus(millis: u64) -> String {
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `250 ms`, `1.5 s`, `2 min`, `3 h`, `5 d`: short, for tables.
pub fn format_millis(millis: u64) -> String {
    let tenths = |unit: u64, name: &str| {
        let tenths = u128::from(millis) * 10 / u128::from(unit);
        if tenths.is_multiple_of(10) || tenths >= 100 {
            format!("{} {name}", tenths / 10)
        } else {
            format!("{}.{} {name}", tenths / 10, tenths % 10)
        }
    };
    match millis {
        0..1000 => format!("{millis} ms"),
        1000..60_000 => tenths(1000, "s"),
        60_000..3_600_000 => tenths(60_000, "min"),
        3_600_000..86_400_000 => tenths(3_600_000, "h"),
        _ => tenths(86_400_000, "d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(memory("256MiB"), Ok(256 << 20));
        assert_eq!(memory("1.5GiB"), Ok(3 << 29));
        assert_eq!(disk("1 GiB"), Ok(1 << 30));
        assert_eq!(memory("268435456"), Ok(256 << 20));
    }

    #[test]
    fn a_bad_size_says_what_is_wrong() {
        let cases = [
            ("-1GiB", "a size cannot be negative"),
            ("nan", "it is not a size: write it like 256MiB or 1.5GiB"),
            ("inf", "it is not a size: write it like 256MiB or 1.5GiB"),
            ("", "it is not a size: write it like 256MiB or 1.5GiB"),
            (".", "it is not a size: write it like 256MiB or 1.5GiB"),
            ("1.2.3GiB", "it is not a size: write it like 256MiB or 1.5GiB"),
            ("1e9", "\"e9\" is not a unit of a size: use one of KiB, MiB, GiB, TiB, kB, KB, MB, GB, TB, B"),
            ("0", "0 B is outside the limits 96 MiB to 256 GiB"),
            ("95MiB", "95 MiB is outside the limits 96 MiB to 256 GiB"),
            ("257GiB", "257 GiB is outside the limits 96 MiB to 256 GiB"),
            ("99999999999999999999", "it is larger than any size can be (18446744073709551615)"),
            ("18446744073709551615TiB", "it is larger than any size can be (18446744073709551615)"),
        ];
        for (text, message) in cases {
            assert_eq!(memory(text), Err(message.to_owned()), "{text}");
        }
    }

    #[test]
    fn cpus_are_thousandths() {
        assert_eq!((cpus("0.5"), cpus("2"), cpus("250m"), cpus(".1")), (Ok(500), Ok(2000), Ok(250), Ok(100)));
        assert_eq!(cpus("0"), Err("0 is outside the limits 0.1 to 32".to_owned()));
        assert_eq!(cpus("33"), Err("33 is outside the limits 0.1 to 32".to_owned()));
        for bad in ["-1", "NaN", "inf", "1e3", "one", "1,5", "0x2"] {
            assert!(cpus(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(ttl("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(ttl("90"), Ok(Duration::from_secs(90)));
        assert_eq!(timeout("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(timeout("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(ttl("0"), Err("0 ms is outside the limits 1 s to 30 d".to_owned()));
        assert_eq!(ttl("31d"), Err("31 d is outside the limits 1 s to 30 d".to_owned()));
        assert_eq!(ttl("1500ms"), Err("1.5 s is not a whole number of seconds".to_owned()));
        for bad in ["-5s", "soon", "5 parsecs", "", "1h-5m", "99999999999999999999d", "18446744073709551615d"]
        {
            assert!(ttl(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pids_are_whole() {
        assert_eq!(pids("512"), Ok(512));
        for bad in ["0", "15", "65537", "100.5", "-1", "many"] {
            assert!(pids(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pairs() {
        assert_eq!(pair("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(label_filter("a"), Ok(("a".into(), String::new())));
        assert!(pair("a").is_err() && pair("=b").is_err() && label_filter("").is_err());
    }

    #[test]
    fn what_is_printed_is_short() {
        let sizes: Vec<String> = [0, 1023, 1536, 256 << 20, u64::MAX].map(format_size).into();
        assert_eq!(sizes, ["0 B", "1023 B", "1.5 KiB", "256 MiB", "15.9 EiB"]);
        let times: Vec<String> = [7, 1500, 90_000, 3_600_000, 400 * 86_400_000].map(format_millis).into();
        assert_eq!(times, ["7 ms", "1.5 s", "1.5 min", "1 h", "400 d"]);
        assert_eq!(
            (format_cpus(500), format_cpus(2000), format_cpus(1250)),
            ("0.5".into(), "2".into(), "1.25".into())
        );
    }
}
