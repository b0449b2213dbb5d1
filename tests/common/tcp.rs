//! Lanes over TLS on TCP: one stream for all, with a lane byte before each frame (protocol.md §1).

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use bimip::wire::{CloseCode, ErrorMessage, Lane, LaneFrameDecoder, Payload, open_envelope};
use bytes::{Bytes, BytesMut};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::raw::length_prefix;

/// A connection and its lanes.
pub struct TcpLink {
    /// `None` once the server has ended it.
    stream: Option<TlsStream<TcpStream>>,
    opened: [bool; 4],
    /// The written part of an incomplete frame, and its lane.
    begun: (Option<Lane>, Vec<u8>),
    decoder: LaneFrameDecoder,
    /// Frames that arrived while another lane was read, each with its length prefix as on a QUIC stream.
    arrived: [VecDeque<Bytes>; 4],
    close: Option<CloseCode>,
    /// How the stream ended: `Ok` if TLS and TCP were closed in order, else the error.
    end: Result<(), String>,
}

impl TcpLink {
    /// An established connection with no lane open.
    ///
    /// # Errors
    /// The connection or the TLS handshake fails.
    pub async fn dial(tls: Arc<rustls::ClientConfig>, address: SocketAddr) -> std::io::Result<Box<TcpLink>> {
        TcpLink::over(TcpStream::connect(address).await?, tls).await
    }

    /// As [`TcpLink::dial`], over a socket that the caller has set up and connected.
    ///
    /// # Errors
    /// The TLS handshake fails.
    pub async fn over(socket: TcpStream, tls: Arc<rustls::ClientConfig>) -> std::io::Result<Box<TcpLink>> {
        socket.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = TlsConnector::from(tls).connect(name, socket).await?;
        Ok(Box::new(TcpLink {
            stream: Some(stream),
            opened: [false; 4],
            begun: (None, Vec::new()),
            // The lanes' own decoders check the length of frames.
            decoder: LaneFrameDecoder::new(usize::MAX),
            arrived: Default::default(),
            close: None,
            end: Ok(()),
        }))
    }

    /// Opens a lane with an empty frame.
    pub async fn open(&mut self, byte: u8) {
        self.begin(None);
        if let Some(opened) = self.opened.get_mut(usize::from(byte)) {
            *opened = true;
        }
        self.write_bytes(&[byte, 0]).await.expect("an open connection");
    }

    /// Marks a lane as open. Call this before [`TcpLink::write_bytes`] opens the lane.
    pub fn takes(&mut self, lane: Lane) {
        self.opened[lane.index()] = true;
    }

    /// Writes bytes of a lane, and the lane byte where a frame begins. Frames may be split anywhere.
    ///
    /// # Errors
    /// The reason why the stream takes no more bytes.
    pub async fn write(&mut self, lane: Lane, bytes: &[u8]) -> Result<(), String> {
        assert!(self.opened[lane.index()], "{lane:?} is not open");
        let (mut stream, mut rest) = (Vec::new(), bytes);
        while !rest.is_empty() {
            if self.begin(Some(lane)) {
                stream.push(lane.byte());
            }
            let frame = &mut self.begun.1;
            let missing = whole(frame).map_or(1, |length| length - frame.len());
            let (now, later) = rest.split_at(missing.min(rest.len()));
            frame.extend_from_slice(now);
            stream.extend_from_slice(now);
            rest = later;
            if whole(frame) == Some(frame.len()) {
                self.begun = (None, Vec::new());
            }
        }
        self.write_bytes(&stream).await
    }

    /// Whether a frame of this lane begins here. Panics within another lane's frame.
    fn begin(&mut self, lane: Option<Lane>) -> bool {
        let (begun, _) = &self.begun;
        assert!(begun.is_none() || *begun == lane, "over TCP no lane can speak within a frame of {begun:?}");
        std::mem::replace(&mut self.begun.0, lane).is_none()
    }

    /// Writes bytes unchanged.
    ///
    /// # Errors
    /// The reason why the stream takes no more bytes.
    pub async fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some(stream) = &mut self.stream else { return Err(self.why()) };
        let write = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        write.await.map_err(|error| error.to_string())
    }

    /// The next frame of a lane, with its length prefix. The future may be dropped and the method called again.
    ///
    /// # Errors
    /// The reason why no more frames will come.
    pub async fn read(&mut self, lane: Lane) -> Result<Bytes, String> {
        assert!(self.opened[lane.index()], "{lane:?} is not open");
        loop {
            if let Some(frame) = self.arrived[lane.index()].pop_front() {
                return Ok(frame);
            }
            self.receive().await?;
        }
    }

    /// Reads the next bytes of the stream and sorts complete frames by lane.
    async fn receive(&mut self) -> Result<(), String> {
        let Some(stream) = &mut self.stream else { return Err(self.why()) };
        let mut bytes = BytesMut::new();
        match stream.read_buf(&mut bytes).await {
            Ok(1..) => self.decoder.feed(&bytes),
            end => {
                // A read does not report a reset that follows the end of the stream.
                let reset = stream.get_ref().0.take_error().expect("an open socket");
                let error = end.err().or(reset);
                (self.stream, self.end) = (None, error.map_or(Ok(()), |error| Err(error.to_string())));
                return Err(self.why());
            }
        }
        while let Some((byte, frame)) = self.decoder.next_frame().expect("no limit is set here") {
            assert!(self.close.is_none(), "nothing comes after the close code");
            let lane = Lane::from_byte(byte).unwrap_or_else(|| panic!("the server speaks on lane {byte}"));
            self.close = (lane == Lane::Control).then(|| close_code(&frame)).flatten();
            if self.close.is_none() {
                assert!(self.opened[lane.index()], "the server speaks on {lane:?}, which was not opened");
                self.arrived[lane.index()].push_back([length_prefix(frame.len()).as_slice(), &frame].concat().into());
            }
        }
        Ok(())
    }

    fn why(&self) -> String {
        self.end.clone().err().unwrap_or_else(|| "the server ended the stream".to_owned())
    }

    /// Waits for the server's close code, which must be the last frame before the end of TLS. A reset fails the test, because
    /// on some systems a reset discards the last frame.
    pub async fn closed(&mut self) -> CloseCode {
        while self.receive().await.is_ok() {}
        assert_eq!(self.end, Ok(()), "an end in order");
        self.close.expect("a close code before the end")
    }

    /// Bytes of this lane's frames that have arrived and were not read yet.
    pub fn waiting(&self, lane: Lane) -> usize {
        self.arrived[lane.index()].iter().map(Bytes::len).sum()
    }

    /// Ends TLS and closes.
    pub fn close(self) {
        let Some(mut stream) = self.stream else { return };
        let (socket, tls) = stream.get_mut();
        tls.send_close_notify();
        let mut goodbye = Vec::new();
        tls.write_tls(&mut goodbye).expect("a Vec takes all");
        // A socket with a full send buffer is closed without it.
        let _ = socket.try_write(&goodbye);
    }
}

/// Length in bytes of the frame that begins so, prefix included. `None` while the prefix is incomplete or if it is invalid.
fn whole(begun: &[u8]) -> Option<usize> {
    let length = prost::decode_length_delimiter(begun).ok()?;
    let prefix = 1 + begun.iter().position(|byte| byte & 0x80 == 0)?;
    Some(prefix.saturating_add(length))
}

/// The close code that the frame carries, if any.
fn close_code(frame: &[u8]) -> Option<CloseCode> {
    match open_envelope(frame).ok()?.payload? {
        Payload::ErrorMessage(ErrorMessage { code, .. }) => {
            CloseCode::ALL.iter().copied().find(|close| close.tcp_error_code() == code)
        }
        _ => None,
    }
}
