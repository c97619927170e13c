//! `ProcessService.Exec`: a process in a guest, joined to its caller.
//!
//! Output is the answer stream itself: it is read from the relay only as fast as the caller takes it. Input is a task
//! beside it, so that signals and end of input pass although nobody reads the output. Whatever ends the call (the caller
//! is gone, its deadline, a bad frame, shutdown) drops the relay, by which the node ends the process.

use super::guest::{Guests, hear, say};
use super::streams::{Answers, bounded};
use super::{deadline, status};
use crate::driver::DriverHandle;
use crate::nodes::relay::{Link, ToNode};
use futures::stream;
use pinfold_domain::{Cause, Epoch, Milestone, Reason, Sandbox, SandboxId};
use pinfold_engine::Event;
use pinfold_proto::api::v1 as wire;
use pinfold_proto::api::v1::process_service_server::ProcessService;
use pinfold_proto::api::v1::{exec_request, exec_response};
use pinfold_proto::convert::process::{frame_from_guest, frame_to_guest, start_to_guest};
use pinfold_proto::guest::v1 as guest;
use pinfold_proto::node::v1::{relay_request, relay_response};
use pinfold_service::Tasks;
use std::time::Duration;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status, Streaming};

pub struct ProcessApi {
    pub guests: Guests,
    pub driver: DriverHandle,
    pub tasks: Tasks,
    /// from the beginning of the call to its first frame
    pub first_frame_timeout: Duration,
}

#[tonic::async_trait]
impl ProcessService for ProcessApi {
    type ExecStream = Answers<wire::ExecResponse>;

    async fn exec(
        &self,
        request: Request<Streaming<wire::ExecRequest>>,
    ) -> Result<Response<Self::ExecStream>, Status> {
        let deadline = deadline::of(request.metadata());
        let mut incoming = request.into_inner();
        let start = deadline::within(deadline, self.first_frame_timeout, first_frame(&mut incoming)).await?;
        let (id, start) = start_to_guest(start).map_err(status::refuse)?;
        let (sandbox, node) = self.guests.running(id).map_err(status::refuse)?;
        let start = guest::ExecRequest { frame: Some(guest::exec_request::Frame::Start(start)) };
        let link = self.guests.open(&node, id, relay_response::Frame::Exec(start), deadline).await?;
        let input = self.tasks.background("exec-input", pump(incoming, link.to_node.clone()));
        let first_byte = FirstByte::of(&sandbox, &self.driver);
        let output = Output { link, input: Input { task: input, ended: false }, first_byte, done: false };
        let frames = stream::unfold(output, |mut output| async move {
            let frame = output.next().await?;
            Some((frame, output))
        });
        Ok(Response::new(bounded(frames, deadline, self.tasks.shutdown())))
    }
}

async fn first_frame(incoming: &mut Streaming<wire::ExecRequest>) -> Result<wire::ExecStart, Status> {
    match incoming.message().await?.and_then(|request| request.frame) {
        Some(exec_request::Frame::Start(start)) => Ok(start),
        _ => Err(status::refuse(Cause::new(
            Reason::InvalidArgument,
            "the first frame of an exec is not start",
        ))),
    }
}

/// Carries input to the node. Returns a status when the call must end for it; the end of the caller's stream closes
/// stdin.
async fn pump(mut incoming: Streaming<wire::ExecRequest>, to_node: ToNode) -> Option<Status> {
    loop {
        let frame = match incoming.message().await {
            Ok(Some(request)) => match frame_to_guest(request) {
                Ok(frame) => frame,
                Err(error) => return Some(status::refuse(error)),
            },
            Ok(None) => {
                let close = guest::exec_request::Frame::CloseStdin(guest::CloseStdin {});
                let request = guest::ExecRequest { frame: Some(close) };
                // a node that is gone is noticed by the output
                let _ = say(&to_node, relay_response::Frame::Exec(request)).await;
                return None;
            }
            Err(error) => return Some(error),
        };
        if say(&to_node, relay_response::Frame::Exec(frame)).await.is_err() {
            return None;
        }
    }
}

/// The input task; it ends with the output.
struct Input {
    task: JoinHandle<Option<Status>>,
    ended: bool,
}

impl Drop for Input {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Output {
    link: Link,
    input: Input,
    first_byte: FirstByte,
    done: bool,
}

impl Output {
    async fn next(&mut self) -> Option<Result<wire::ExecResponse, Status>> {
        if self.done {
            return None;
        }
        let frame = self.frame().await;
        self.done = match &frame {
            Ok(response) => matches!(response.frame, Some(exec_response::Frame::Exited(_))),
            Err(_) => true,
        };
        if let Ok(response) = &frame {
            self.first_byte.look(response);
        }
        Some(frame)
    }

    async fn frame(&mut self) -> Result<wire::ExecResponse, Status> {
        let heard = loop {
            tokio::select! {
                heard = hear(&mut self.link.from_node, output_frame) => break heard?,
                ended = &mut self.input.task, if !self.input.ended => {
                    self.input.ended = true;
                    if let Ok(Some(status)) = ended {
                        return Err(status);
                    }
                }
            }
        };
        heard.ok_or_else(|| {
            let message = "the stream of the process ended without its end";
            status::refuse(Cause::new(Reason::GuestUnresponsive, message))
        })
    }
}

fn output_frame(frame: relay_request::Frame) -> Option<wire::ExecResponse> {
    match frame {
        relay_request::Frame::Exec(response) if response.frame.is_some() => Some(frame_from_guest(response)),
        _ => None,
    }
}

/// Tells the engine of the first byte of output that ever came out of a sandbox.
struct FirstByte {
    /// until it was told
    waiting: Option<(SandboxId, Epoch)>,
    driver: DriverHandle,
}

impl FirstByte {
    fn of(sandbox: &Sandbox, driver: &DriverHandle) -> Self {
        let known = sandbox.timeline.iter().any(|entry| entry.milestone == Milestone::FirstByte);
        Self { waiting: (!known).then_some((sandbox.id, sandbox.epoch)), driver: driver.clone() }
    }

    fn look(&mut self, response: &wire::ExecResponse) {
        let has_bytes = match &response.frame {
            Some(exec_response::Frame::Stdout(data) | exec_response::Frame::Stderr(data)) => !data.is_empty(),
            _ => false,
        };
        if has_bytes && let Some((sandbox_id, epoch)) = self.waiting.take() {
            self.driver.hint(Event::FirstByte { sandbox_id, epoch });
        }
    }
}
