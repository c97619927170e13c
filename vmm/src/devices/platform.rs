//! What the host tells the guest's kernel through ACPI's event device: edges on two lines. There are no registers, so
//! nothing has to be saved with a machine.

use crate::layout;
use std::io;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

#[derive(Debug)]
pub struct PlatformEvents {
    generation: EventFd,
    button: EventFd,
}

impl PlatformEvents {
    pub fn new() -> io::Result<Self> {
        let line = || EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC);
        Ok(Self { generation: line()?, button: line()? })
    }

    /// Each line with its number, to be wired to the interrupt controller.
    pub fn lines(&self) -> [(&EventFd, u32); 2] {
        [(&self.generation, layout::GENERATION_LINE), (&self.button, layout::POWER_BUTTON_LINE)]
    }

    /// The id at [`layout::VM_GENERATION_ID`] is another one. The guest sees it when its vCPUs run.
    pub fn generation_changed(&self) -> io::Result<()> {
        self.generation.write(1)
    }

    /// What the guest makes of it is its own business; it may do nothing.
    pub fn press_power_button(&self) -> io::Result<()> {
        self.button.write(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_event_has_its_line() {
        let events = PlatformEvents::new().expect("eventfds");
        let raised = || events.lines().map(|(line, number)| line.read().is_ok().then_some(number));
        assert_eq!(raised(), [None, None]);
        events.generation_changed().expect("an edge");
        assert_eq!(raised(), [Some(16), None]);
        events.press_power_button().expect("an edge");
        events.press_power_button().expect("an edge");
        assert_eq!(raised(), [None, Some(17)], "presses that nobody has seen are one");
        assert_eq!(raised(), [None, None]);
    }
}
