//! TLS of a QUIC connection, whose memory is freed once the handshake is complete (RFC 9001).
//!
//! quinn's own implementation keeps rustls' connection for as long as the QUIC connection lives: its state machine, record keys
//! that only TLS over TCP would use, and the buffer of the client's first message. A server does not need them again. A client
//! sends nothing in TLS after its handshake (RFC 9001 forbids certificates in 4.4 and key updates in 6), and the keys of QUIC's
//! own updates are derived from secrets that rustls hands over with the first keys.

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

/// The settings of all handshakes.
pub(super) struct QuicTls {
    rustls: Arc<rustls::ServerConfig>,
    /// Does what precedes TLS and is the same here: the keys of first packets, and the tags of Retry packets.
    quinn: Arc<QuicServerConfig>,
}

impl QuicTls {
    /// # Errors
    /// If rustls would refuse every connection: without TLS 1.3 or a suite for QUIC, or with a size of early data other than
    /// all or none.
    pub(super) fn new(rustls: rustls::ServerConfig) -> Result<QuicTls, Error> {
        let rustls = Arc::new(rustls);
        // Made like each connection, only to see whether it is refused; it sends nothing.
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
        // The drafts whose keys differ from version 1's, as quinn distinguishes them.
        let tls_version = if matches!(version, 0xff00_001d..=0xff00_0020) { Version::V1Draft } else { Version::V1 };
        let connection = ServerConnection::new(self.rustls.clone(), tls_version, ours);
        let connection = connection.expect("QuicTls::new made one with the same settings");
        Box::new(Handshake { connection: Some(Box::new(connection)), next: None, version, config: self })
    }
}

/// TLS of one connection. Nothing in the server asks for the handshake's results or for exported keys, so it returns neither.
struct Handshake {
    /// `None` once the handshake is complete and everything that it has to say is written.
    connection: Option<Box<ServerConnection>>,
    /// Secrets from which the keys of the next update are derived.
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
                // quinn asks until there is no more; the tickets come at the end of the handshake.
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

#[cfg(test)]
mod tests {
    use bytes::BytesMut;
    use rustls::RootCertStore;
    use rustls::crypto::aws_lc_rs::default_provider;
    use rustls::quic::ClientConnection;
    use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    use super::*;
    use crate::transport::Tickets;

    const V1: u32 = 1;

    /// The settings of a server, and of a client that trusts it.
    fn settings() -> (rustls::ServerConfig, Arc<rustls::ClientConfig>) {
        let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
        let mut roots = RootCertStore::empty();
        roots.add(own.cert.der().clone()).unwrap();
        let mut server = rustls::ServerConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        server.max_early_data_size = u32::MAX;
        server.session_storage = Arc::new(Tickets::new(16, || {}));
        let mut client = rustls::ClientConfig::builder_with_provider(Arc::new(default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.enable_early_data = true;
        (server, Arc::new(client))
    }

    fn server() -> (Arc<QuicTls>, Arc<rustls::ClientConfig>) {
        let (server, client) = settings();
        (Arc::new(QuicTls::new(server).unwrap()), client)
    }

    fn parameters() -> TransportParameters {
        TransportParameters::read(Side::Server, &mut &[][..]).expect("all have a default")
    }

    /// The server's side after a handshake, and the 1-RTT keys of both sides.
    struct Pair {
        server: Box<dyn Session>,
        server_keys: Keys,
        client_next: Secrets,
    }

    fn dial(config: &Arc<rustls::ClientConfig>) -> ClientConnection {
        let mut ours = Vec::new();
        parameters().write(&mut ours);
        ClientConnection::new(config.clone(), Version::V1, "localhost".try_into().unwrap(), ours).unwrap()
    }

    /// Everything that a client has to say, and its secrets if the 1-RTT keys are among it.
    fn said(client: &mut ClientConnection) -> (Vec<u8>, Option<Secrets>) {
        let (mut said, mut next) = (Vec::new(), None);
        loop {
            let before = said.len();
            match client.write_hs(&mut said) {
                Some(KeyChange::OneRtt { next: secrets, .. }) => next = Some(secrets),
                Some(KeyChange::Handshake { .. }) => {}
                None if said.len() == before => return (said, next),
                None => {}
            }
        }
    }

    /// Asks as quinn does, until nothing is written and there are no more keys. Returns a flight for each kind of packet.
    fn answered(server: &mut dyn Session) -> (Vec<Vec<u8>>, Vec<Keys>) {
        let (mut all, mut keys) = (Vec::new(), Vec::new());
        loop {
            let mut some = Vec::new();
            let more = server.write_handshake(&mut some);
            let done = some.is_empty() && more.is_none();
            all.extend(Some(some).filter(|some| !some.is_empty()));
            keys.extend(more);
            if done {
                return (all, keys);
            }
        }
    }

    fn shake(config: &Arc<QuicTls>, mut client: ClientConnection) -> Pair {
        let mut server = config.clone().start_session(V1, &parameters());
        let (hello, _) = said(&mut client);
        server.read_handshake(&hello).unwrap();
        assert!(server.transport_parameters().unwrap().is_some());
        let (answer, mut keys) = answered(&mut *server);
        let server_keys = keys.pop().expect("those of 1-RTT come last");
        answer.iter().for_each(|flight| client.read_hs(flight).unwrap());
        let (finished, next) = said(&mut client);
        assert!(server.is_handshaking());
        server.read_handshake(&finished).unwrap();
        let (tickets, none) = answered(&mut *server);
        assert!(!tickets.is_empty() && none.is_empty() && !server.is_handshaking());
        tickets.iter().for_each(|flight| client.read_hs(flight).unwrap());
        Pair { server, server_keys, client_next: next.unwrap() }
    }

    #[test]
    fn keys_of_each_update_agree_with_the_clients_once_tls_is_given_back() {
        let (config, trusting) = server();
        let mut pair = shake(&config, dial(&trusting));
        assert_eq!(pair.server_keys.packet.local.tag_len(), 16);
        for update in 0..3 {
            let ours = pair.server.next_1rtt_keys().unwrap();
            let theirs = pair.client_next.next_packet_keys();
            let (header, text) = (b"header", b"both ways");
            let mut packet = [&header[..], text, &[0; 16]].concat();
            ours.local.encrypt(update, &mut packet, header.len());
            let opened = theirs.remote.decrypt_in_place(update, header, &mut packet[header.len()..]).unwrap();
            assert_eq!(opened, text);
            let mut payload = text.to_vec();
            let tag = theirs.local.encrypt_in_place(update, header, &mut payload).unwrap();
            payload.extend_from_slice(tag.as_ref());
            let mut payload = BytesMut::from(&payload[..]);
            ours.remote.decrypt(update, header, &mut payload).unwrap();
            assert_eq!(payload, text[..]);
        }
    }

    #[test]
    fn who_goes_on_in_tls_after_the_handshake_is_told_so() {
        let (config, trusting) = server();
        let mut pair = shake(&config, dial(&trusting));
        // A KeyUpdate (RFC 8446, 4.6.3), and an empty message.
        for message in [&[24, 0, 0, 1, 0][..], &[]] {
            let error = pair.server.read_handshake(message).unwrap_err();
            assert_eq!(u64::from(error.code), 0x100 + 10, "RFC 9001, 6: unexpected_message");
        }
        assert!(pair.server.write_handshake(&mut Vec::new()).is_none());
        assert!(matches!(pair.server.transport_parameters(), Ok(None)));
    }

    #[test]
    fn a_ticket_of_one_connection_opens_the_next_with_early_data() {
        let (config, trusting) = server();
        shake(&config, dial(&trusting));
        let mut client = dial(&trusting);
        let early = client.zero_rtt_keys().expect("the ticket allows early data");
        let mut server = config.start_session(V1, &parameters());
        assert!(server.early_crypto().is_none());
        server.read_handshake(&said(&mut client).0).unwrap();
        let (_, opens) = server.early_crypto().unwrap();
        let mut payload = b"early".to_vec();
        let tag = early.packet.encrypt_in_place(7, b"header", &mut payload).unwrap();
        payload.extend_from_slice(tag.as_ref());
        let mut payload = BytesMut::from(&payload[..]);
        opens.decrypt(7, b"header", &mut payload).unwrap();
        assert_eq!(payload, b"early"[..]);
    }

    #[test]
    fn what_is_no_tls_fails_with_an_alert() {
        let mut session = server().0.start_session(V1, &parameters());
        let error = session.read_handshake(&[1, 0, 0, 1, 0]).unwrap_err();
        assert_eq!(u64::from(error.code) & !0xff, 0x100, "{error}");
    }

    #[test]
    fn settings_that_no_connection_could_use_are_refused() {
        let (mut tls, _) = settings();
        tls.max_early_data_size = 1000;
        assert!(QuicTls::new(tls).is_err());
    }
}
