//! Connections: one that all calls of a client share, and one for each process that takes input.
//!
//! A process with input has a connection of its own, because giving up such a stream must reach the server. While the
//! process does not read, the HTTP/2 window is closed and the library that carries the body waits for it: it does not
//! reset the stream when the answer is dropped, and the process would live on. Shutting the socket down always works.

use crate::client::ClientOptions;
use crate::error::{Error, deepest};
use hyper_util::rt::TokioIo;
use pinfold_proto::limits;
use std::net::Shutdown;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint, Uri};

/// `endpoint` as `http://HOST:PORT`, with the bounds of every connection.
pub(crate) fn endpoint(endpoint: &str, options: ClientOptions) -> Result<Endpoint, Error> {
    let unusable = |why: String| Error::Endpoint { endpoint: endpoint.to_owned(), why };
    if !endpoint.starts_with("http://") {
        return Err(unusable("it must begin with http:// (TLS is not supported yet)".to_owned()));
    }
    let target = Endpoint::from_shared(endpoint.to_owned()).map_err(|error| unusable(deepest(&error)))?;
    Ok(target
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        // a peer that has vanished without a word is noticed, also while a stream is silent
        .http2_keep_alive_interval(Duration::from_secs(15))
        .keep_alive_timeout(Duration::from_secs(20))
        .keep_alive_while_idle(false)
        .initial_stream_window_size(u32::try_from(8 * limits::FRAME_BYTES).unwrap_or(u32::MAX))
        .initial_connection_window_size(4 * 1024 * 1024))
}

fn refused(target: &Endpoint, error: &tonic::transport::Error) -> Error {
    let endpoint = target.uri().to_string().trim_end_matches('/').to_owned();
    Error::Connect { endpoint, source: deepest(error).into() }
}

pub(crate) async fn shared(target: &Endpoint) -> Result<Channel, Error> {
    target.connect().await.map_err(|error| refused(target, &error))
}

/// A connection for one stream; dropping it shuts the socket down, whatever is under way.
#[derive(Debug)]
pub(crate) struct OwnConnection {
    /// a second handle of the socket, once it is connected
    socket: Arc<Mutex<Option<std::net::TcpStream>>>,
}

impl Drop for OwnConnection {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // the other side may have closed it already
            let _ = socket.shutdown(Shutdown::Both);
        }
    }
}

pub(crate) async fn own(target: &Endpoint) -> Result<(Channel, OwnConnection), Error> {
    let socket = Arc::new(Mutex::new(None));
    let owner = OwnConnection { socket: Arc::clone(&socket) };
    let connector = tower::service_fn(move |uri: Uri| {
        let socket = Arc::clone(&socket);
        async move {
            let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
            let stream = TcpStream::connect((host, uri.port_u16().unwrap_or(80))).await?;
            stream.set_nodelay(true)?;
            let stream = stream.into_std()?;
            *socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream.try_clone()?);
            Ok::<_, std::io::Error>(TokioIo::new(TcpStream::from_std(stream)?))
        }
    });
    let channel = target.connect_with_connector(connector).await.map_err(|error| refused(target, &error))?;
    Ok((channel, owner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_used_is_named() {
        for (bad, why) in [("127.0.0.1:7420", "http://"), ("https://a:1", "TLS"), ("http://a b", "uri")] {
            let error = endpoint(bad, ClientOptions::default()).unwrap_err().to_string();
            assert!(error.contains(bad) && error.contains(why), "{error}");
        }
    }

    #[tokio::test]
    async fn nobody_at_the_address_is_an_error_that_names_it() {
        // a port that was free a moment ago
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let address = format!("http://127.0.0.1:{port}");
        let target = endpoint(&address, ClientOptions::default()).unwrap();
        let errors = [shared(&target).await.unwrap_err(), own(&target).await.unwrap_err()];
        for error in errors {
            assert_eq!(error.to_string(), format!("cannot connect to the scheduler at {address}"));
            assert!(error.retryable());
        }
    }
}
