use super::*;

fn start(command: &[&str]) -> ExecStart {
    ExecStart { command: command.iter().map(|&word| word.to_owned()).collect(), ..Default::default() }
}

fn check(start: ExecStart) -> Result<Plan, Cause> {
    Plan::check(start, Path::new("/var/empty/no-such-root"), Some("00-trace-01"))
}

fn error_of(change: impl FnOnce(&mut ExecStart)) -> String {
    let mut changed = start(&["true"]);
    change(&mut changed);
    let cause = check(changed).err().expect("the change breaks a rule");
    assert_eq!(cause.reason, Reason::InvalidArgument);
    cause.message
}

fn variable(plan: &Plan, name: &str) -> Option<String> {
    let start = format!("{name}=");
    let mut lines = plan.environment.iter().map(|line| line.to_str().unwrap());
    lines.find_map(|line| line.strip_prefix(&start).map(str::to_owned))
}

#[test]
fn each_bad_field_is_named() {
    assert!(error_of(|s| s.command.clear()).contains("command"));
    assert!(error_of(|s| s.command = vec!["a\0b".into()]).contains("NUL"));
    assert!(error_of(|s| s.working_directory = "relative".into()).contains("working_directory"));
    assert!(error_of(|s| s.user = "no-such-user".into()).contains("no-such-user"));
    assert!(error_of(|s| s.timeout_ms = Some(0)).contains("timeout_ms"));
    assert!(error_of(|s| s.terminal = Some(TerminalSize { rows: 1, columns: 70_000 })).contains("65535"));
    assert!(error_of(|s| drop(s.environment.insert("A=B".into(), String::new()))).contains("A=B"));
    assert!(error_of(|s| drop(s.environment.insert("A".into(), "x".repeat(100_000)))).contains("65536"));
    let many = (0..600).map(|n| (format!("V{n}"), String::new())).collect();
    assert!(error_of(|s| s.environment = many).contains("512"));
}

#[test]
fn the_environment_has_defaults_that_the_caller_overrides() {
    let mut request = start(&["true"]);
    request.environment.insert("LANG".into(), "de_DE.UTF-8".into());
    let plan = check(request).unwrap();
    assert_eq!(variable(&plan, "LANG").unwrap(), "de_DE.UTF-8");
    assert_eq!(variable(&plan, "USER").unwrap(), "root");
    assert_eq!(variable(&plan, "PATH").unwrap(), DEFAULT_PATH);
    assert_eq!(variable(&plan, "TRACEPARENT").unwrap(), "00-trace-01");
    assert_eq!(variable(&plan, "TERM"), None);
}

#[test]
fn a_program_is_looked_for_in_the_given_path() {
    let mut request = start(&["tool"]);
    request.environment.insert("PATH".into(), "/a::/b/".into());
    let plan = check(request).unwrap();
    let candidates: Vec<_> = plan.candidates.iter().map(|c| c.to_str().unwrap()).collect();
    assert_eq!(candidates, ["/a/tool", "tool", "/b/tool"]);
    assert_eq!(check(start(&["./tool"])).unwrap().candidates.len(), 1);
    assert!(check(start(&[&"x".repeat(300)])).unwrap().candidates.is_empty());
}
