//! A connection without a network: four lanes, each in order and independent of the others, all lost at once.

use std::collections::VecDeque;

use bytes::Bytes;

use crate::limits::LANE_QUEUE_BYTES;
use crate::wire::Lane;

/// What a client has sent on a lane.
pub(super) enum Up {
    Opened,
    Frame(Bytes),
}

#[derive(Default)]
pub(super) struct LaneState {
    /// On its way to the server.
    pub(super) up: VecDeque<Up>,
    /// The server knows that the lane is open.
    pub(super) open: bool,
    /// Written by the server, not taken by the transport.
    pub(super) queued: VecDeque<Bytes>,
    /// On its way to the client.
    pub(super) down: VecDeque<Bytes>,
}

pub(super) struct Link {
    pub(super) device: usize,
    pub(super) lanes: [LaneState; 4],
    /// The client still holds its end. What it has sent may arrive even after it lets go.
    pub(super) client: bool,
    /// The server has not ended it.
    pub(super) server: bool,
    /// Bytes of room on a slow chat lane: the tail may write this much, and then has to wait. `None`: a fast lane.
    pub(super) narrow: Option<usize>,
}

impl Link {
    pub(super) fn new(device: usize, narrow: Option<usize>) -> Link {
        Link { device, lanes: Default::default(), client: true, server: true, narrow }
    }

    pub(super) fn lane(&mut self, lane: Lane) -> &mut LaneState {
        &mut self.lanes[lane.index()]
    }

    /// The bytes queued on a lane, as the session is told: a narrow lane looks almost full already.
    pub(super) fn queued(&self, lane: Lane) -> usize {
        let bytes: usize = self.lanes[lane.index()].queued.iter().map(Bytes::len).sum();
        match self.narrow {
            Some(room) if lane == Lane::Chat => bytes + LANE_QUEUE_BYTES - room,
            _ => bytes,
        }
    }

    /// The bytes that are really held.
    pub(super) fn held(&self) -> usize {
        self.lanes.iter().flat_map(|lane| &lane.queued).map(Bytes::len).sum()
    }

    pub(super) fn client_lost(&mut self) {
        self.client = false;
        self.lanes.iter_mut().for_each(|lane| lane.down.clear());
    }

    pub(super) fn server_lost(&mut self) {
        self.server = false;
        self.lanes.iter_mut().for_each(|lane| {
            lane.up.clear();
            lane.queued.clear();
        });
    }
}
