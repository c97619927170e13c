//! Processes: output, exit codes, signals, terminals, time limits, users.

use crate::harness::{Exec, Frame, connect, is_running, run, shell, start, until};
use pinfold_proto::guest::v1::exec_response::Frame as Answer;
use pinfold_proto::guest::v1::{ExecStart, TerminalSize};
use pinfold_proto::reasons;
use std::time::{Duration, Instant};
use tonic::Code;

#[tokio::test]
async fn output_comes_on_its_own_stream_and_the_exit_code_is_the_processs() {
    let done = run(shell("echo out; echo err >&2; exit 7")).await.unwrap();
    assert_eq!(
        (done.text().as_str(), done.stderr.as_slice(), done.code()),
        ("out\n", &b"err\n"[..], Some(7))
    );
    assert!(done.pid > 1);
    assert_eq!(done.exited.unwrap().message, "");
}

#[tokio::test]
async fn the_end_of_stdin_reaches_the_process_and_its_output_goes_on() {
    let exec = Exec::open(&mut connect().await, start(&["cat"])).await;
    exec.stdin(b"one ").await;
    exec.stdin(b"two").await;
    exec.close_stdin().await;
    let done = exec.finish().await.unwrap();
    assert_eq!((done.text().as_str(), done.code()), ("one two", Some(0)));
}

#[tokio::test]
async fn the_end_of_the_callers_frames_is_the_end_of_stdin() {
    let mut exec = Exec::open(&mut connect().await, start(&["wc", "-c"])).await;
    exec.stdin(b"12345").await;
    exec.half_close();
    assert_eq!(exec.finish().await.unwrap().text().trim(), "5");
}

#[tokio::test]
async fn a_signal_ends_the_process_and_is_reported() {
    let mut exec = Exec::open(&mut connect().await, start(&["sleep", "1000"])).await;
    assert!(matches!(exec.next().await, Some(Answer::Started(_))));
    exec.send(Frame::Signal(15)).await;
    assert_eq!(exec.finish().await.unwrap().signal(), Some(15));
}

#[tokio::test]
async fn a_real_time_signal_is_reported_too() {
    let done = run(shell("kill -40 $$")).await.unwrap();
    assert_eq!(done.signal(), Some(40));
}

#[tokio::test]
async fn a_command_that_does_not_exist_is_127() {
    for command in ["no-such-command-here", "/no/such/path", "/etc/passwd/below-a-file"] {
        let done = run(start(&[command])).await.unwrap();
        assert_eq!(done.code(), Some(127));
        assert_eq!(done.exited.unwrap().message, format!("{command}: no such command"));
        assert_eq!(done.pid, 0, "it was never started");
    }
}

#[tokio::test]
async fn what_cannot_be_executed_is_126() {
    let directory = tempfile::tempdir().unwrap();
    let plain = directory.path().join("plain");
    std::fs::write(&plain, "echo never").unwrap();
    for path in [plain.as_path(), directory.path()] {
        let done = run(start(&[path.to_str().unwrap()])).await.unwrap();
        assert_eq!(done.code(), Some(126));
        let message = done.exited.unwrap().message;
        assert!(message.contains("not executable") && message.contains("permission denied"), "{message}");
    }
    let script = directory.path().join("script");
    std::fs::write(&script, "#!/no/such/interpreter\n").unwrap();
    set_mode(&script, 0o755);
    let done = run(start(&[script.to_str().unwrap()])).await.unwrap();
    assert_eq!(done.code(), Some(126));
    assert!(done.exited.unwrap().message.contains("interpreter"));
}

#[tokio::test]
async fn a_script_without_an_interpreter_line_is_run_by_the_shell() {
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("script");
    std::fs::write(&script, "echo \"$0 $1 $2\"").unwrap();
    set_mode(&script, 0o755);
    let path = script.to_str().unwrap();
    assert_eq!(run(start(&[path, "a", "b c"])).await.unwrap().text(), format!("{path} a b c\n"));
}

#[tokio::test]
async fn a_missing_working_directory_is_named() {
    let wrong = ExecStart { working_directory: "/no/such/place".into(), ..start(&["true"]) };
    let done = run(wrong).await.unwrap();
    assert_eq!(done.code(), Some(126));
    let message = done.exited.unwrap().message;
    assert!(message.contains("/no/such/place") && message.contains("no such file"), "{message}");
}

#[tokio::test]
async fn directory_and_environment_are_the_callers() {
    let mut request =
        ExecStart { working_directory: "/usr/bin".into(), ..shell("pwd; echo $GREETING; echo $LANG") };
    request.environment.insert("GREETING".into(), "hello there".into());
    assert_eq!(run(request).await.unwrap().text(), "/usr/bin\nhello there\nC.UTF-8\n");
}

#[tokio::test]
async fn the_trace_of_the_call_reaches_the_process() {
    let mut client = connect().await;
    let first =
        pinfold_proto::guest::v1::ExecRequest { frame: Some(Frame::Start(shell("echo $TRACEPARENT"))) };
    let mut request = tonic::Request::new(tokio_stream::iter([first]));
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    request.metadata_mut().insert("traceparent", trace.parse().unwrap());
    let mut answers = client.exec(request).await.unwrap().into_inner();
    let mut output = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        if let Some(Answer::Stdout(data)) = answer.frame {
            output.extend_from_slice(&data);
        }
    }
    assert_eq!(output, format!("{trace}\n").into_bytes());
}

#[tokio::test]
async fn a_process_runs_as_its_user_with_its_groups() {
    if !nix::unistd::Uid::effective().is_root() {
        // another identity needs root; the guest's agent always is
        return;
    }
    let done = run(ExecStart { user: "nobody".into(), ..shell("id -un; id -G; echo $HOME $USER; pwd") })
        .await
        .unwrap();
    let text = done.text();
    assert!(text.starts_with("nobody\n65534\n"), "{text}");
    // the home of nobody does not exist, so `/` has to do
    assert!(text.ends_with("/nonexistent nobody\n/\n"), "{text}");
    let done = run(ExecStart { user: "4242".into(), ..shell("id -u; id -g") }).await.unwrap();
    assert_eq!(done.text(), "4242\n4242\n");
    let done = run(ExecStart { user: "nobody".into(), ..shell("kill -9 1; cat /etc/shadow") }).await.unwrap();
    assert_ne!(done.code(), Some(0));
}

#[tokio::test]
async fn a_process_inherits_nothing_of_the_agent() {
    // a descriptor that does not close by itself
    let leak =
        nix::fcntl::open("/dev/null", nix::fcntl::OFlag::O_RDONLY, nix::sys::stat::Mode::empty()).unwrap();
    let descriptors =
        run(shell("ls /proc/$$/fd; cat /proc/$$/oom_score_adj; ps -o sid= -p $$")).await.unwrap();
    drop(leak);
    let text = descriptors.text();
    assert!(text.starts_with("0\n1\n2\n0\n"), "{text}");
    let session = text.lines().last().unwrap().trim();
    assert_eq!(session, descriptors.pid.to_string(), "it leads a session of its own");
    // not by a shell, which blocks signals for moments
    let signals = run(start(&["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"])).await.unwrap();
    assert_eq!(signals.text(), "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n");
}

#[tokio::test]
async fn a_bad_start_is_an_error_that_names_the_field() {
    for (wrong, field) in [
        (start(&[]), "command"),
        (ExecStart { user: "no-such-user".into(), ..start(&["true"]) }, "no-such-user"),
        (ExecStart { working_directory: "here".into(), ..start(&["true"]) }, "working_directory"),
        (
            ExecStart { terminal: Some(TerminalSize { rows: 0, columns: 1 }), ..start(&["true"]) },
            "terminal.rows",
        ),
    ] {
        let status = run(wrong).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains(field), "{}", status.message());
        assert_eq!(reasons::cause(&status).reason.as_str(), "InvalidArgument");
    }
}

#[tokio::test]
async fn a_second_start_ends_the_stream_and_the_process() {
    let mut exec = Exec::open(&mut connect().await, start(&["sleep", "4711.25"])).await;
    assert!(matches!(exec.next().await, Some(Answer::Started(_))));
    exec.send(Frame::Start(start(&["true"]))).await;
    let status = exec.finish().await.unwrap_err();
    assert!(status.message().contains("once"), "{}", status.message());
    until("the process ends", || !is_running("4711.25")).await;
}

#[tokio::test]
async fn a_terminal_has_its_size_and_its_resizes() {
    let terminal = Some(TerminalSize { rows: 33, columns: 101 });
    let request = ExecStart {
        terminal,
        ..shell("tty >/dev/null && echo yes; stty size; read line; stty size; exit 3")
    };
    let mut exec = Exec::open(&mut connect().await, request).await;
    let seen = exec.read_until("33 101").await;
    assert!(seen.contains("yes\r\n"), "{seen:?}");
    exec.send(Frame::Resize(TerminalSize { rows: 40, columns: 120 })).await;
    exec.stdin(b"\n").await;
    exec.read_until("40 120").await;
    assert_eq!(exec.finish().await.unwrap().code(), Some(3));
}

#[tokio::test]
async fn an_interrupt_on_a_terminal_meets_the_foreground_job() {
    let terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let request = ExecStart { terminal, ..start(&["bash", "--norc", "-i"]) };
    let mut exec = Exec::open(&mut connect().await, request).await;
    exec.stdin(b"sleep 1234.5; echo after=$?\n").await;
    until("the job runs", || is_running("1234.5")).await;
    exec.send(Frame::Signal(2)).await;
    until("the job ends", || !is_running("1234.5")).await;
    exec.stdin(b"echo still=here; exit 5\n").await;
    exec.read_until("still=here\r\n").await;
    assert_eq!(exec.finish().await.unwrap().code(), Some(5));
}

#[tokio::test]
async fn the_end_of_stdin_on_a_terminal_is_the_end_of_file_character() {
    for (text, expected) in [(&b"line\n"[..], "line"), (b"no line", "no line")] {
        let terminal = Some(TerminalSize { rows: 24, columns: 80 });
        let exec = Exec::open(&mut connect().await, ExecStart { terminal, ..start(&["cat"]) }).await;
        exec.stdin(text).await;
        exec.close_stdin().await;
        let done = exec.finish().await.unwrap();
        assert!(done.text().contains(expected));
        assert_eq!(done.code(), Some(0));
    }
}

#[tokio::test]
async fn a_signal_reaches_a_process_whose_terminal_is_full_and_closed() {
    let terminal = Some(TerminalSize { rows: 24, columns: 80 });
    let request = ExecStart { terminal, ..shell("stty raw -echo; echo ready; exec sleep 1000") };
    let mut exec = Exec::open(&mut connect().await, request).await;
    exec.read_until("ready").await;
    for _ in 0..4 {
        exec.stdin(&[b'x'; 64 * 1024]).await;
    }
    exec.close_stdin().await;
    exec.send(Frame::Signal(15)).await;
    assert_eq!(exec.finish().await.unwrap().signal(), Some(15));
}

#[tokio::test]
async fn a_time_limit_ends_a_process_politely() {
    let request =
        ExecStart { timeout_ms: Some(300), ..shell("trap 'exit 9' TERM; while :; do sleep 0.05; done") };
    let done = run(request).await.unwrap();
    assert_eq!(done.code(), Some(9));
    assert!(done.exited.unwrap().timed_out);
}

#[tokio::test]
async fn a_time_limit_ends_a_process_that_will_not() {
    let script = "trap '' TERM; sleep 7531.5 & while :; do sleep 0.05; done";
    let begun = Instant::now();
    let done = run(ExecStart { timeout_ms: Some(300), ..shell(script) }).await.unwrap();
    assert_eq!(done.signal(), Some(9));
    assert!(done.exited.unwrap().timed_out);
    assert!(begun.elapsed() < Duration::from_secs(10));
    until("its children end", || !is_running("7531.5")).await;
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_the_whole_tree() {
    let mut client = connect().await;
    let script = "setsid sleep 8642.25 & (sleep 8642.75 &) ; sleep 8642.5";
    let mut exec = Exec::open(&mut client, shell(script)).await;
    assert!(matches!(exec.next().await, Some(Answer::Started(_))));
    let words = ["8642.25", "8642.5", "8642.75"];
    until("the tree runs", || words.iter().all(|word| is_running(word))).await;
    drop(exec);
    until("the tree ends", || !words.iter().any(|word| is_running(word))).await;
}

#[tokio::test]
async fn a_background_child_lives_on_and_does_not_hold_the_answer() {
    let begun = Instant::now();
    let done = run(shell("sleep 9753.5 & echo started; exit 4")).await.unwrap();
    assert_eq!((done.text().as_str(), done.code()), ("started\n", Some(4)));
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert!(is_running("9753.5"));
    run(shell("pkill -f 'sleep 9753[.]5'")).await.unwrap();
    until("it ends", || !is_running("9753.5")).await;
}

fn set_mode(path: &std::path::Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}
