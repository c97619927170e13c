//! The kernel's command line, as far as the agent is meant.

use std::fs;

/// The value of `name=value`; none when it is not there or empty. The last one counts, as in the kernel.
pub fn value(name: &str) -> Option<String> {
    value_in(&fs::read_to_string("/proc/cmdline").ok()?, name)
}

fn value_in(line: &str, name: &str) -> Option<String> {
    let mut values = line.split_whitespace().filter_map(|word| word.split_once('='));
    let value = values.rfind(|(key, _)| *key == name)?.1;
    (!value.is_empty()).then(|| value.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_value_counts() {
        let line = "console=ttyS0 pinfold.hostname=a xpinfold.hostname=c pinfold.hostname=b quiet\n";
        assert_eq!(value_in(line, "pinfold.hostname").as_deref(), Some("b"));
        assert_eq!(value_in("pinfold.hostname=", "pinfold.hostname"), None);
        assert_eq!(value_in("quiet", "quiet"), None);
    }
}
