//! Lanes over TLS on TCP: a lane byte before each frame, and one stream for all (profile 2).

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
    /// What has been written of a frame that is not whole yet, with its lane.
    begun: (Option<Lane>, Vec<u8>),
    decoder: LaneFrameDecoder,
    /// Frames that came while another lane was read, as they would come on a stream of their own.
    arrived: [VecDeque<Bytes>; 4],
    close: Option<CloseCode>,
    /// How it ended; TLS and TCP did so in order, or something else happened.
    end: Result<(), String>,
}

impl TcpLink {
    /// An established connection, with no lane open.
    pub async fn dial(tls: Arc<rustls::ClientConfig>, address: SocketAddr) -> std::io::Result<Box<TcpLink>> {
        TcpLink::over(TcpStream::connect(address).await?, tls).await
    }

    /// The same over a socket with settings of its own.
    pub async fn over(socket: TcpStream, tls: Arc<rustls::ClientConfig>) -> std::io::Result<Box<TcpLink>> {
        socket.set_nodelay(true)?;
        let name = ServerName::try_from("localhost").expect("a name");
        let stream = TlsConnector::from(tls).connect(name, socket).await?;
        Ok(Box::new(TcpLink {
            stream: Some(stream),
            opened: [false; 4],
            begun: (None, Vec::new()),
            // The lanes' own decoders know how long a frame may be.
            decoder: LaneFrameDecoder::new(usize::MAX),
            arrived: Default::default(),
            close: None,
            end: Ok(()),
        }))
    }

    /// An empty frame opens a lane.
    pub async fn open(&mut self, byte: u8) {
        self.begin(None);
        if let Some(opened) = self.opened.get_mut(usize::from(byte)) {
            *opened = true;
        }
        self.write_bytes(&[byte, 0]).await.expect("an open connection");
    }

    /// Counts a lane as open, which bytes written as they are will open.
    pub fn takes(&mut self, lane: Lane) {
        self.opened[lane.index()] = true;
    }

    /// Writes bytes of a lane, however they are split, with the lane's byte where a frame begins.
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

    /// Whether a frame of this lane begins here. Within another lane's it cannot.
    fn begin(&mut self, lane: Option<Lane>) -> bool {
        let (begun, _) = &self.begun;
        assert!(begun.is_none() || *begun == lane, "over TCP no lane can speak within a frame of {begun:?}");
        std::mem::replace(&mut self.begun.0, lane).is_none()
    }

    /// Writes bytes as they are.
    pub async fn write_bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        let Some(stream) = &mut self.stream else { return Err(self.why()) };
        let write = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        write.await.map_err(|error| error.to_string())
    }

    /// The next frame of a lane, with its length prefix; the reason if there are no more. May be given up and called
    /// again.
    pub async fn read(&mut self, lane: Lane) -> Result<Bytes, String> {
        assert!(self.opened[lane.index()], "{lane:?} is not open");
        loop {
            if let Some(frame) = self.arrived[lane.index()].pop_front() {
                return Ok(frame);
            }
            self.receive().await?;
        }
    }

    /// Takes in what comes next, for whichever lane.
    async fn receive(&mut self) -> Result<(), String> {
        let Some(stream) = &mut self.stream else { return Err(self.why()) };
        let mut bytes = BytesMut::new();
        match stream.read_buf(&mut bytes).await {
            Ok(1..) => self.decoder.feed(&bytes),
            end => {
                // A reset behind the end does not show when it is read.
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

    /// The code with which the server closes: what was said last, and then the end of TLS. A reset would not do: on other
    /// systems it takes what was said last with it.
    pub async fn closed(&mut self) -> CloseCode {
        while self.receive().await.is_ok() {}
        assert_eq!(self.end, Ok(()), "an end in order");
        self.close.expect("a close code before the end")
    }

    /// Bytes of a lane that came while another was read.
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
        // A socket that takes no more is closed without it.
        let _ = socket.try_write(&goodbye);
    }
}

/// What the whole frame measures, prefix included, once its beginning says so. A prefix that is none never does.
fn whole(begun: &[u8]) -> Option<usize> {
    let length = prost::decode_length_delimiter(begun).ok()?;
    let prefix = 1 + begun.iter().position(|byte| byte & 0x80 == 0)?;
    Some(prefix.saturating_add(length))
}

/// The server closes, if the frame says so.
fn close_code(frame: &[u8]) -> Option<CloseCode> {
    match open_envelope(frame).ok()?.payload? {
        Payload::ErrorMessage(ErrorMessage { code, .. }) => {
            CloseCode::ALL.iter().copied().find(|close| close.tcp_error_code() == code)
        }
        _ => None,
    }
}
