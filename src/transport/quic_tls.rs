//! TLS of a QUIC connection, which is given back once the handshake is complete (RFC 9001).
//!
//! quinn's own keeps rustls' connection for as long as the QUIC connection lives: its state machine, record keys that only
//! TLS over TCP would use, the buffer in which the client's first message was. A server needs none of them again. No client
//! has anything to say in TLS after its handshake (RFC 9001 forbids certificates in 4.4 and key updates in 6), and the
//! keys of each update of QUIC's own follow from secrets that rustls hands over with the first ones.

use std::any::Any;
use std::sync::Arc;

use quinn::ConnectionId;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::crypto::{
    ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, ServerConfig, Session, UnsupportedVersion,
};
use quinn_proto::transport_parameters::TransportParameters;
use quinn_proto::{Side, TransportError, TransportErrorCode};
use rustls::quic::{KeyChange, Secrets, ServerConnection, Version};
use rustls::{AlertDescription, Error};

/// What handshakes are done with.
pub(super) struct QuicTls {
    rustls: Arc<rustls::ServerConfig>,
    /// For what goes before TLS, and is the same: the keys of first packets, the tags of Retry packets.
    quinn: Arc<QuicServerConfig>,
}

impl QuicTls {
    /// # Errors
    /// Where rustls would refuse each connection: without TLS 1.3 or a suite for QUIC, or with another size of early
    /// data than all or none.
    pub(super) fn new(rustls: rustls::ServerConfig) -> Result<QuicTls, Error> {
        let rustls = Arc::new(rustls);
        // As each connection will be; it sends nothing.
        ServerConnection::new(rustls.clone(), Version::V1, Vec::new())?;
        let quinn = QuicServerConfig::try_from(rustls.clone()).map_err(|error| Error::General(error.to_string()))?;
        Ok(QuicTls { rustls, quinn: Arc::new(quinn) })
    }
}

impl ServerConfig for QuicTls {
    fn initial_keys(&self, version: u32, dst_cid: &ConnectionId) -> Result<Keys, UnsupportedVersion> {
        self.quinn.initial_keys(version, dst_cid)
    }

    fn retry_tag(&self, version: u32, orig_dst_cid: &ConnectionId, packet: &[u8]) -> [u8; 16] {
        self.quinn.retry_tag(version, orig_dst_cid, packet)
    }

    fn start_session(self: Arc<Self>, version: u32, params: &TransportParameters) -> Box<dyn Session> {
        let mut ours = Vec::new();
        params.write(&mut ours);
        // The drafts whose keys are not version 1's, as quinn tells them apart.
        let tls_version = if matches!(version, 0xff00_001d..=0xff00_0020) { Version::V1Draft } else { Version::V1 };
        let connection = ServerConnection::new(self.rustls.clone(), tls_version, ours);
        let connection = connection.expect("QuicTls::new made one with the same settings");
        Box::new(Handshake { connection: Some(Box::new(connection)), next: None, version, config: self })
    }
}

/// TLS of one connection. Nobody asks for what the handshake agreed on, or for keys of their own: it tells of neither.
struct Handshake {
    /// `None` once it is complete and all that it says is written.
    connection: Option<Box<ServerConnection>>,
    /// What the next update's keys are made of.
    next: Option<Secrets>,
    version: u32,
    config: Arc<QuicTls>,
}

impl Session for Handshake {
    fn initial_keys(&self, dst_cid: &ConnectionId, _side: Side) -> Keys {
        self.config.initial_keys(self.version, dst_cid).expect("it was asked for them before this one was made")
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        None
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        let keys = self.connection.as_ref()?.zero_rtt_keys()?;
        Some((Box::new(keys.header), Box::new(keys.packet)))
    }

    fn early_data_accepted(&self) -> Option<bool> {
        None
    }

    fn is_handshaking(&self) -> bool {
        self.connection.as_ref().is_some_and(|connection| connection.is_handshaking())
    }

    fn read_handshake(&mut self, bytes: &[u8]) -> Result<bool, TransportError> {
        let Some(connection) = &mut self.connection else {
            return Err(failed(AlertDescription::UnexpectedMessage, "the handshake is over".to_owned()));
        };
        match connection.read_hs(bytes) {
            Ok(()) => Ok(false),
            Err(error) => Err(failed(connection.alert().unwrap_or(AlertDescription::InternalError), error.to_string())),
        }
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        let theirs = self.connection.as_ref().and_then(|connection| connection.quic_transport_parameters());
        Ok(theirs.map(|mut bytes| TransportParameters::read(Side::Server, &mut bytes)).transpose()?)
    }

    fn write_handshake(&mut self, buffer: &mut Vec<u8>) -> Option<Keys> {
        let connection = self.connection.as_mut()?;
        let keys = match connection.write_hs(buffer) {
            Some(KeyChange::Handshake { keys }) => keys,
            Some(KeyChange::OneRtt { keys, next }) => {
                self.next = Some(next);
                keys
            }
            None => {
                // Asked until there is no more; the tickets come with the handshake's end.
                if buffer.is_empty() && !connection.is_handshaking() {
                    self.connection = None;
                }
                return None;
            }
        };
        let (local, remote) = (keys.local, keys.remote);
        Some(Keys {
            header: KeyPair { local: Box::new(local.header), remote: Box::new(remote.header) },
            packet: KeyPair { local: Box::new(local.packet), remote: Box::new(remote.packet) },
        })
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        let keys = self.next.as_mut()?.next_packet_keys();
        Some(KeyPair { local: Box::new(keys.local), remote: Box::new(keys.remote) })
    }

    fn is_valid_retry(&self, _orig_dst_cid: &ConnectionId, _header: &[u8], _payload: &[u8]) -> bool {
        false
    }

    fn export_keying_material(&self, _: &mut [u8], _: &[u8], _: &[u8]) -> Result<(), ExportKeyingMaterialError> {
        Err(ExportKeyingMaterialError)
    }
}

fn failed(alert: AlertDescription, reason: String) -> TransportError {
    TransportError { code: TransportErrorCode::crypto(alert.into()), frame: None, reason }
}
