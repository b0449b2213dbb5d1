//! All lanes over one TLS stream: one task writes what the lanes send, another distributes what is received.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, bail};
use bytes::Bytes;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::FRAME_BYTES_MAX;
use super::lane::{Reader, Writer};
use crate::wire::{Lane, LaneFrameDecoder};

/// Batches of frames queued for the stream.
const BATCHES_MAX: usize = 4;
/// Unread frames of one lane; more block all lanes, as is usual over TCP.
const FRAMES_MAX: usize = 256;
/// Bytes per read.
const CHUNK_BYTES: usize = 64 * 1024;

/// One connection; it ends when it is dropped.
pub(in crate::cli::bench) struct Connection {
    out: mpsc::Sender<Bytes>,
    /// The received frames of each lane, until the lane is opened.
    lanes: Mutex<[Option<mpsc::Receiver<Bytes>>; Lane::ALL.len()]>,
    tasks: [AbortHandle; 2],
}

impl Connection {
    pub(super) async fn dial(
        server: SocketAddr,
        name: ServerName<'static>,
        tls: Arc<rustls::ClientConfig>,
    ) -> anyhow::Result<Connection> {
        let stream = TcpStream::connect(server).await?;
        stream.set_nodelay(true)?;
        let stream = TlsConnector::from(tls).connect(name, stream).await?;
        let (read, write) = tokio::io::split(stream);
        let (out, frames) = mpsc::channel(BATCHES_MAX);
        let (lanes_in, lanes_out): (Vec<_>, Vec<_>) = Lane::ALL.iter().map(|_| mpsc::channel(FRAMES_MAX)).unzip();
        let mut lanes_out = lanes_out.into_iter();
        let tasks = [
            tokio::spawn(write_all(write, frames)).abort_handle(),
            tokio::spawn(deal_out(read, lanes_in)).abort_handle(),
        ];
        let lanes = Mutex::new(std::array::from_fn(|_| lanes_out.next()));
        Ok(Connection { out, lanes, tasks })
    }

    /// Opens a lane. For the server it is open with its first frame.
    pub(super) fn open(&self, lane: Lane) -> anyhow::Result<(Writer, Reader)> {
        let mut lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
        let frames = lanes[lane.index()].take().context("a lane is opened once")?;
        Ok((Writer::tcp(lane, self.out.clone()), Reader::tcp(frames)))
    }

    pub(super) fn close(&self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.close();
    }
}

async fn write_all(
    mut stream: WriteHalf<TlsStream<TcpStream>>,
    mut batches: mpsc::Receiver<Bytes>,
) -> anyhow::Result<()> {
    while let Some(batch) = batches.recv().await {
        stream.write_all(&batch).await?;
        while let Ok(batch) = batches.try_recv() {
            stream.write_all(&batch).await?;
        }
        stream.flush().await?;
    }
    Ok(())
}

async fn deal_out(
    mut stream: ReadHalf<TlsStream<TcpStream>>,
    mut lanes: Vec<mpsc::Sender<Bytes>>,
) -> anyhow::Result<()> {
    let mut decoder = LaneFrameDecoder::new(FRAME_BYTES_MAX);
    let mut chunk = vec![0; CHUNK_BYTES];
    loop {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            bail!("the server ended the connection");
        }
        decoder.feed(&chunk[..read]);
        while let Some((lane, frame)) = decoder.next_frame().map_err(|(_, error)| error)? {
            let lane = lanes.get_mut(usize::from(lane)).context("a lane that does not exist")?;
            // If a lane's reader was dropped, its frames are discarded.
            let _ = lane.send(frame).await;
        }
    }
}
