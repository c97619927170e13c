//! Processes that callers start.
//!
//! ```text
//! first frame ─ plan ─ spawn ─┬─ input:  frames -> stdin, signals, resize      ┐ until the process ends
//!                (refused:    ├─ output: stdout, stderr -> frames              │
//!                 an error)   └─ wait:   its end, or its time limit            ┘ ─ rest of the output ─ `exited`
//! ```
//!
//! - A caller that goes away ends its process and all that this forked: the conversation is dropped, and with it the
//!   [`spawn::Process`], whose drop kills the tree.
//! - A process that ends by itself leaves its background children alone. They live on in the workload, in the cgroup in
//!   which they were born, and end with the sandbox. What they write to the ended process's stdout is delivered until there
//!   were 200 ms of silence; then the pipe is closed.
//! - Nothing is read that there is no room for: a caller that does not read stops the process at its pipe, and a process
//!   that does not read stops the caller by HTTP/2 flow control. Signals overtake at most
//!   [`STREAM_QUEUE_FRAMES`](pinfold_proto::limits::STREAM_QUEUE_FRAMES) frames of stdin that wait.

pub mod channel;
pub mod input;
pub mod output;
pub mod plan;
pub mod pty;
pub mod session;
pub mod spawn;
pub mod users;

mod child;
