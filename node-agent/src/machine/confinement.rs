//! What holds a VMM beside its jail, as it says itself and as the kernel says of it: one event of the log at each start, and a
//! warning that names what is missing. A host's kernel may lack Landlock or user namespaces; a VMM without its seccomp filters
//! is never what anybody wants.

use pinfold_domain::SandboxId;
use pinfold_vmm_api::control::Confinement;

/// `user_namespace`: whether it has one of its own; `None` where that cannot be told.
pub fn log(id: SandboxId, confinement: &Confinement, user_namespace: Option<bool>) {
    let Confinement { landlock_version, seccomp } = *confinement;
    tracing::info!(sandbox = %id, seccomp, landlock_version, user_namespace, "what holds the VMM");
    let missing = missing(confinement, user_namespace);
    if !missing.is_empty() {
        let missing = missing.join(", ");
        tracing::warn!(sandbox = %id, missing, "a layer of the VMM's confinement is not in force on this node");
    }
}

fn missing(confinement: &Confinement, user_namespace: Option<bool>) -> Vec<&'static str> {
    let layers = [
        ("seccomp", confinement.seccomp),
        ("landlock", confinement.landlock_version.is_some()),
        ("user namespace", user_namespace != Some(false)),
    ];
    layers.into_iter().filter(|(_, in_force)| !in_force).map(|(name, _)| name).collect()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    /// What is logged by this thread while it is there.
    pub struct Captured {
        text: Text,
        _guard: tracing::subscriber::DefaultGuard,
    }

    #[derive(Clone, Default)]
    struct Text(Arc<Mutex<Vec<u8>>>);

    impl Write for Text {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Captured {
        pub fn begin() -> Self {
            let text = Text::default();
            let writer = text.clone();
            let subscriber =
                tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
            Self { text, _guard: tracing::subscriber::set_default(subscriber) }
        }

        /// Lines with `what` in them.
        pub fn lines(&self, what: &str) -> Vec<String> {
            let text = String::from_utf8(self.text.0.lock().unwrap().clone()).unwrap();
            text.lines().filter(|line| line.contains(what)).map(str::to_owned).collect()
        }
    }

    #[test]
    fn what_is_in_force_is_told_and_what_is_missing_is_warned_of() {
        let id = "0190b3f0-5a00-7000-8000-000000000001".parse().unwrap();
        let all = Confinement { seccomp: true, landlock_version: Some(6) };
        for (confinement, user_namespace, expected) in [
            (all, Some(true), None),
            // an older kernel that does not say is not blamed
            (all, None, None),
            (all, Some(false), Some("missing=\"user namespace\"")),
            (Confinement { landlock_version: None, ..all }, Some(true), Some("missing=\"landlock\"")),
            (Confinement::default(), Some(false), Some("missing=\"seccomp, landlock, user namespace\"")),
        ] {
            let captured = Captured::begin();
            log(id, &confinement, user_namespace);
            let told = captured.lines("what holds the VMM");
            let seccomp = format!("seccomp={}", confinement.seccomp);
            assert!(told.len() == 1 && told[0].contains(&seccomp), "{told:?}");
            assert_eq!(
                told[0].contains("landlock_version=6"),
                confinement.landlock_version.is_some(),
                "{told:?}"
            );
            let warned = captured.lines("WARN");
            match expected {
                None => assert_eq!(warned, [] as [&str; 0]),
                Some(expected) => assert!(warned.len() == 1 && warned[0].contains(expected), "{warned:?}"),
            }
        }
    }
}
