//! The configuration of the scheduler: every bound that it keeps, each with its default.

use pinfold_engine::{EngineConfig, PlacementPolicy};
use pinfold_service::config::{BadValue, Config, in_range};
use pinfold_service::logs::LogConfig;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// The scheduler's own default port.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7420";

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SchedulerConfig {
    /// clients and nodes both dial this; port 0 takes a free one
    pub listen: SocketAddr,
    /// permits `listen` beyond loopback although there is no TLS
    pub insecure_listen: bool,
    /// the embedded store lives here
    pub data_dir: PathBuf,
    /// the address that is listened on is written here once calls are answered
    pub ready_file: Option<PathBuf>,
    /// how long the end may take before it is given up
    pub shutdown_timeout_ms: u64,
    pub log: LogConfig,
    pub engine: EngineConfig,
    pub store: StoreConfig,
    pub driver: DriverConfig,
    pub server: ServerConfig,
    pub nodes: NodesConfig,
    pub relay: RelayConfig,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            listen: DEFAULT_LISTEN.parse().expect("a literal address"),
            insecure_listen: false,
            data_dir: PathBuf::from("/var/lib/pinfold/scheduler"),
            ready_file: None,
            shutdown_timeout_ms: 10_000,
            log: LogConfig::default(),
            engine: EngineConfig::default(),
            store: StoreConfig::default(),
            driver: DriverConfig::default(),
            server: ServerConfig::default(),
            nodes: NodesConfig::default(),
            relay: RelayConfig::default(),
        }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StoreConfig {
    /// changes that are kept for watchers to resume from
    pub history_entries: u64,
    /// page cache of the embedded store
    pub cache_bytes: usize,
}

impl Default for StoreConfig {
    fn default() -> Self {
        Self { history_entries: 10_000, cache_bytes: 64 * 1024 * 1024 }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DriverConfig {
    /// events that may wait for the engine
    pub inbox: usize,
    /// events that share one commit
    pub batch: usize,
    /// how long a call waits for room in the inbox before it is shed
    pub inbox_wait_ms: u64,
}

impl Default for DriverConfig {
    fn default() -> Self {
        Self { inbox: 4096, batch: 256, inbox_wait_ms: 1000 }
    }
}

/// Bounds of HTTP/2.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    pub connections: usize,
    pub streams_per_connection: u32,
    /// calls of one connection that have not been answered yet; more are shed
    pub calls_per_connection: usize,
    /// what a peer may send on one stream before it is read
    pub stream_window_bytes: u32,
    pub header_list_bytes: u32,
    pub keepalive_interval_ms: u64,
    pub keepalive_timeout_ms: u64,
    /// from the accepted connection to its first byte
    pub first_byte_timeout_ms: u64,
    /// for calls that are answered once, when the caller sets no earlier deadline
    pub call_timeout_ms: u64,
    /// watches at once
    pub watches: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            connections: 4096,
            streams_per_connection: 1024,
            calls_per_connection: 1024,
            stream_window_bytes: 128 * 1024,
            header_list_bytes: 16 * 1024,
            keepalive_interval_ms: 20_000,
            keepalive_timeout_ms: 10_000,
            first_byte_timeout_ms: 5_000,
            call_timeout_ms: 30_000,
            watches: 1024,
        }
    }
}

impl ServerConfig {
    /// The window of a connection holds the windows of all its streams: otherwise a few streams whose far end does not
    /// read would use it up, and stall every other stream of that connection, a node's session among them.
    pub fn connection_window_bytes(&self) -> u32 {
        /// RFC 9113, 6.9.1
        const MAX_WINDOW_BYTES: u32 = (1 << 31) - 1;
        self.stream_window_bytes.saturating_mul(self.streams_per_connection).min(MAX_WINDOW_BYTES)
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodesConfig {
    /// told to every node
    pub heartbeat_interval_ms: u64,
    /// from the beginning of a session or relay to its first message
    pub first_message_timeout_ms: u64,
    /// commands that may wait for a node that does not read; one more and its session is cut
    pub command_queue: usize,
}

impl Default for NodesConfig {
    fn default() -> Self {
        Self { heartbeat_interval_ms: 3000, first_message_timeout_ms: 10_000, command_queue: 1024 }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelayConfig {
    /// streams to guests at once
    pub streams: usize,
    /// of these, on one sandbox
    pub streams_per_sandbox: usize,
    /// how long a node may take to dial in for a stream
    pub open_timeout_ms: u64,
}

impl Default for RelayConfig {
    fn default() -> Self {
        Self { streams: 8192, streams_per_sandbox: 256, open_timeout_ms: 10_000 }
    }
}

impl SchedulerConfig {
    pub fn shutdown_timeout(&self) -> Duration {
        Duration::from_millis(self.shutdown_timeout_ms)
    }
}

impl Config for SchedulerConfig {
    const ENV_PREFIX: &'static str = "PINFOLD_SCHEDULER_";

    fn check(&self) -> Result<(), BadValue> {
        check_listen(self.listen, self.insecure_listen)?;
        if self.data_dir.as_os_str().is_empty() {
            return Err(BadValue::new("data_dir", "empty", "a directory is needed"));
        }
        self.engine.validate().map_err(|error| BadValue::new("engine", "not usable", error.to_string()))?;
        let hour_ms = 3_600_000;
        in_range("shutdown_timeout_ms", self.shutdown_timeout_ms, 100, hour_ms)?;
        in_range("store.history_entries", self.store.history_entries, 1, 10_000_000)?;
        in_range("store.cache_bytes", self.store.cache_bytes, 1 << 20, 1 << 36)?;
        in_range("driver.inbox", self.driver.inbox, 1, 1 << 20)?;
        in_range("driver.batch", self.driver.batch, 1, 1 << 16)?;
        in_range("driver.inbox_wait_ms", self.driver.inbox_wait_ms, 1, hour_ms)?;
        in_range("server.connections", self.server.connections, 1, 1 << 20)?;
        in_range("server.streams_per_connection", self.server.streams_per_connection, 1, 1 << 20)?;
        in_range("server.calls_per_connection", self.server.calls_per_connection, 1, 1 << 20)?;
        in_range("server.stream_window_bytes", self.server.stream_window_bytes, 65_535, 1 << 24)?;
        in_range("server.header_list_bytes", self.server.header_list_bytes, 1024, 1 << 20)?;
        in_range("server.keepalive_interval_ms", self.server.keepalive_interval_ms, 100, hour_ms)?;
        in_range("server.keepalive_timeout_ms", self.server.keepalive_timeout_ms, 100, hour_ms)?;
        in_range("server.first_byte_timeout_ms", self.server.first_byte_timeout_ms, 10, hour_ms)?;
        in_range("server.call_timeout_ms", self.server.call_timeout_ms, 10, hour_ms)?;
        in_range("server.watches", self.server.watches, 1, 1 << 20)?;
        in_range("nodes.heartbeat_interval_ms", self.nodes.heartbeat_interval_ms, 10, hour_ms)?;
        in_range("nodes.first_message_timeout_ms", self.nodes.first_message_timeout_ms, 10, hour_ms)?;
        in_range("nodes.command_queue", self.nodes.command_queue, 1, 1 << 20)?;
        in_range("relay.streams", self.relay.streams, 1, 1 << 20)?;
        in_range("relay.streams_per_sandbox", self.relay.streams_per_sandbox, 1, 1 << 16)?;
        in_range("relay.open_timeout_ms", self.relay.open_timeout_ms, 10, hour_ms)?;
        if self.nodes.heartbeat_interval_ms.saturating_mul(2) > self.engine.suspect_after.0 {
            let limit = format!(
                "engine.suspect_after_ms is {}: a node must be allowed to miss one heartbeat",
                self.engine.suspect_after.0
            );
            return Err(BadValue::new(
                "nodes.heartbeat_interval_ms",
                self.nodes.heartbeat_interval_ms,
                limit,
            ));
        }
        Ok(())
    }
}

/// Without TLS whoever can reach the port runs code on the fleet, so that beyond loopback it must be asked for.
fn check_listen(listen: SocketAddr, insecure_listen: bool) -> Result<(), BadValue> {
    if listen.ip().to_canonical().is_loopback() || insecure_listen {
        return Ok(());
    }
    let limit = "this address can be reached from other machines and the scheduler has no TLS, so that anyone who \
                 reaches it could run code on every node; listen on a loopback address (127.0.0.1), or say \
                 --insecure-listen if the network itself keeps strangers out";
    Err(BadValue::new("listen", listen, limit))
}

/// Flags that stand above the file and the environment. What is `None` was not given.
#[derive(Debug, Clone, Default, Serialize, clap::Args)]
pub struct ConfigFlags {
    /// Address for clients and nodes; port 0 takes a free one [default: 127.0.0.1:7420]
    #[arg(long, value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// Directory of the embedded store [default: /var/lib/pinfold/scheduler]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Permit --listen beyond loopback without TLS
    #[arg(long, num_args = 0, default_missing_value = "true")]
    pub insecure_listen: Option<bool>,
    /// Write the actual address to this file once calls are answered
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    #[command(flatten)]
    pub engine: EngineFlags,
}

#[derive(Debug, Clone, Default, Serialize, clap::Args)]
pub struct EngineFlags {
    /// Fill nodes one after the other, or use all alike [default: pack]
    #[arg(long, value_name = "pack|spread", value_parser = parse_placement)]
    pub placement: Option<PlacementPolicy>,
}

fn parse_placement(text: &str) -> Result<PlacementPolicy, String> {
    match text {
        "pack" => Ok(PlacementPolicy::Pack),
        "spread" => Ok(PlacementPolicy::Spread),
        other => Err(format!("{other:?} is no placement policy: pack or spread")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pinfold_service::config::{dump, load};

    #[test]
    fn the_defaults_are_good_and_survive_a_dump() {
        let config = SchedulerConfig::default();
        config.check().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), dump(&config).unwrap()).unwrap();
        let again: SchedulerConfig = load(Some(file.path()), &ConfigFlags::default()).unwrap();
        assert_eq!(dump(&again).unwrap(), dump(&config).unwrap());
    }

    #[test]
    fn beyond_loopback_it_must_be_told_so() {
        for address in ["0.0.0.0:7420", "10.0.0.1:0", "[::]:7420", "[::ffff:10.0.0.1]:1"] {
            let listen = address.parse().unwrap();
            let error = check_listen(listen, false).unwrap_err().to_string();
            assert!(error.contains("--insecure-listen") && error.contains("no TLS"), "{error}");
            assert!(check_listen(listen, true).is_ok());
        }
        for address in ["127.0.0.1:0", "127.8.0.1:7420", "[::1]:7420", "[::ffff:127.0.0.1]:1"] {
            assert!(check_listen(address.parse().unwrap(), false).is_ok(), "{address}");
        }
    }

    #[test]
    fn flags_reach_their_place() {
        let flags = ConfigFlags {
            engine: EngineFlags { placement: Some(PlacementPolicy::Spread) },
            listen: Some("127.0.0.1:9".parse().unwrap()),
            ..ConfigFlags::default()
        };
        let config: SchedulerConfig = load(None, &flags).unwrap();
        assert_eq!(config.engine.placement, PlacementPolicy::Spread);
        assert_eq!(config.listen.port(), 9);
        assert_eq!(config.engine.queue_length, EngineConfig::default().queue_length);
    }

    #[test]
    fn heartbeats_leave_room_for_one_that_is_lost() {
        let mut config = SchedulerConfig::default();
        config.nodes.heartbeat_interval_ms = config.engine.suspect_after.0;
        assert!(config.check().unwrap_err().to_string().contains("suspect_after_ms"));
    }

    #[test]
    fn a_connection_has_room_for_all_its_streams() {
        let server = ServerConfig::default();
        assert_eq!(server.connection_window_bytes(), 128 * 1024 * 1024);
        let most = ServerConfig { streams_per_connection: 1 << 20, ..server };
        assert_eq!(most.connection_window_bytes(), i32::MAX as u32);
    }
}
