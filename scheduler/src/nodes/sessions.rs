//! Who is connected: at most one live session per node, each with a bounded queue of commands.
//!
//! Invariant: a command goes to the session that it was meant for, or nowhere. What is lost with a session is said again
//! by the engine when the node registers anew.

use pinfold_domain::{Cause, NodeId, Reason, Term};
use pinfold_engine::SessionId;
use pinfold_proto::node::v1::SessionResponse;
use pinfold_proto::node::v1::session_response::Message;
use pinfold_service::CancellationToken;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use tokio::sync::mpsc;

/// Sessions of all nodes.
pub struct Sessions {
    term: Term,
    queue: usize,
    next: AtomicU64,
    live: Mutex<HashMap<NodeId, Session>>,
}

/// One session, seen from both of its ends.
#[derive(Clone)]
pub struct Session {
    pub id: SessionId,
    commands: mpsc::Sender<SessionResponse>,
    end: Arc<End>,
}

struct End {
    token: CancellationToken,
    why: OnceLock<Cause>,
}

impl Session {
    /// Cancelled when the session is to end.
    pub fn ended(&self) -> CancellationToken {
        self.end.token.clone()
    }

    /// Why it ended; there once [`Session::ended`] is cancelled.
    pub fn why(&self) -> Cause {
        let unknown = || Cause::new(Reason::NodeUnreachable, "the session is over");
        self.end.why.get().cloned().unwrap_or_else(unknown)
    }

    pub fn end(&self, why: Cause) {
        let _ = self.end.why.set(why);
        self.end.token.cancel();
    }
}

impl Sessions {
    /// `queue`: commands that may wait for one node.
    pub fn new(term: Term, queue: usize) -> Self {
        Self { term, queue, next: AtomicU64::new(1), live: Mutex::new(HashMap::new()) }
    }

    pub fn term(&self) -> Term {
        self.term
    }

    /// Begins a session of `node` with its first command; the session that it had ends. `id` is from
    /// [`Sessions::next_id`].
    pub fn begin(
        &self,
        node: &NodeId,
        id: SessionId,
        first: Message,
    ) -> (Session, mpsc::Receiver<SessionResponse>) {
        let (commands, receiver) = mpsc::channel(self.queue);
        let end = Arc::new(End { token: CancellationToken::new(), why: OnceLock::new() });
        let session = Session { id, commands, end };
        // before anybody else can reach the queue, so that it is first and there is room
        let _ = self.queue(node, &session, first);
        if let Some(older) = self.lock().insert(node.clone(), session.clone()) {
            tracing::warn!(%node, "a newer session replaces this node's session");
            older.end(Cause::new(Reason::NodeUnreachable, "a newer session of this node has begun"));
        }
        (session, receiver)
    }

    /// Terms grow with every start of the scheduler, so that an id is never used again.
    pub fn next_id(&self) -> SessionId {
        SessionId((self.term.0 << 32) | (self.next.fetch_add(1, Ordering::Relaxed) & u64::from(u32::MAX)))
    }

    /// Takes the session out, unless a newer one has taken its place.
    pub fn remove(&self, node: &NodeId, id: SessionId) {
        let mut live = self.lock();
        if live.get(node).is_some_and(|session| session.id == id) {
            live.remove(node);
        }
    }

    pub fn get(&self, node: &NodeId) -> Option<Session> {
        self.lock().get(node).cloned()
    }

    /// Queues a command for one session. A node that lets its queue fill up is cut: it has stopped reading.
    pub fn send(&self, node: &NodeId, id: SessionId, message: Message) {
        match self.get(node) {
            Some(session) if session.id == id => drop(self.queue(node, &session, message)),
            _ => tracing::debug!(%node, "a command for a session that is over is dropped"),
        }
    }

    /// Queues a command for the session that `node` has now.
    pub fn queue(&self, node: &NodeId, session: &Session, message: Message) -> Result<(), Cause> {
        let response = SessionResponse { term: self.term.0, message: Some(message) };
        session.commands.try_send(response).map_err(|_| {
            let why = format!("node {node} does not read: {} commands wait, which is the limit", self.queue);
            let cause = Cause::new(Reason::NodeUnreachable, why);
            if !session.end.token.is_cancelled() {
                tracing::warn!(%node, "{}: its session is cut", cause.message);
                session.end(cause.clone());
            }
            cause
        })
    }

    pub fn close(&self, node: &NodeId, id: SessionId, why: &str) {
        if let Some(session) = self.get(node).filter(|session| session.id == id) {
            tracing::info!(%node, why, "closing a node's session");
            session.end(Cause::new(Reason::NodeUnreachable, why));
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<NodeId, Session>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_proto::node::v1::{Forget, Registered};

    fn node() -> NodeId {
        "node-1".parse().unwrap()
    }

    fn forget() -> Message {
        Message::Forget(Forget::default())
    }

    fn begin(sessions: &Sessions) -> (Session, mpsc::Receiver<SessionResponse>) {
        sessions.begin(&node(), sessions.next_id(), Message::Registered(Registered::default()))
    }

    #[test]
    fn a_newer_session_ends_the_older_and_takes_its_commands() {
        let sessions = Sessions::new(Term(3), 4);
        let (older, mut older_commands) = begin(&sessions);
        let (newer, mut newer_commands) = begin(&sessions);
        assert!(older.ended().is_cancelled());
        assert!(older.why().message.contains("newer session"));
        sessions.send(&node(), older.id, forget());
        sessions.send(&node(), newer.id, forget());
        let said = |commands: &mut mpsc::Receiver<SessionResponse>| commands.try_recv().ok()?.message;
        assert!(matches!(said(&mut older_commands), Some(Message::Registered(_))));
        assert_eq!(said(&mut older_commands), None);
        assert!(matches!(said(&mut newer_commands), Some(Message::Registered(_))));
        assert!(matches!(said(&mut newer_commands), Some(Message::Forget(_))));
        sessions.remove(&node(), older.id);
        assert!(sessions.get(&node()).is_some(), "the older end does not take the newer session away");
        sessions.remove(&node(), newer.id);
        assert!(sessions.get(&node()).is_none());
    }

    #[test]
    fn a_node_that_does_not_read_is_cut() {
        let sessions = Sessions::new(Term(1), 2);
        let (session, _commands) = begin(&sessions);
        sessions.send(&node(), session.id, forget());
        assert!(!session.ended().is_cancelled());
        sessions.send(&node(), session.id, forget());
        assert!(session.ended().is_cancelled());
        assert!(session.why().message.contains("does not read"), "{:?}", session.why());
    }

    #[test]
    fn a_session_id_of_another_term_is_another_id() {
        assert_ne!(Sessions::new(Term(1), 1).next_id(), Sessions::new(Term(2), 1).next_id());
    }
}
