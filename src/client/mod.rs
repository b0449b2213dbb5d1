//! The device's side: one handle that signs in, sends, receives, and comes back by itself.
//!
//! ```no_run
//! use bimip::client::{Device, Event};
//! use bimip::wire::{AckStatus, DeviceId, Eid};
//!
//! # async fn example(token: String) -> Result<(), Box<dyn std::error::Error>> {
//! let (device, mut events) = Device::builder()
//!     .server("chat.example.org:4433")
//!     .roots_pem("ca.pem")
//!     .identity(Eid::parse("alice@example.org")?, DeviceId::parse("phone")?)
//!     .token(token)
//!     .auto_deliver(true)
//!     .connect()?;
//!
//! // Events in a task of their own: a device whose events are not read stops reading from the server.
//! let reader = device.clone();
//! tokio::spawn(async move {
//!     while let Some(event) = events.next().await {
//!         if let Event::Message(message) = event {
//!             if message.from == *reader.eid() {
//!                 continue; // written on another of Alice's devices
//!             }
//!             println!("{}: {}", message.from, message.text().unwrap_or("(media)"));
//!             let read = reader.acknowledge(message.message_id, &message.from, AckStatus::Read);
//!             if let Err(error) = read.await {
//!                 eprintln!("not acknowledged: {error}");
//!             }
//!         }
//!     }
//! });
//!
//! // Returns once the server has it, however often the network went away in between.
//! let sent = device.send_text(&Eid::parse("bob@example.org")?, "Hey Bob!").await?;
//! println!("version {} after {:?}", sent.version, sent.latency);
//! device.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//! - A message that `send_text` returned for is durable at the server. One that it did not return for is sent again, with
//!   the same local id and in the same order, on every new connection until it is answered: the server takes it once. (It
//!   remembers local ids for seven days at least.) Texts keep their order among themselves, and so does media; a text and a
//!   media message travel on lanes of their own, so that either may be first.
//! - Every entry of the user's log comes as an event once, in order, across reconnects. Across restarts of the process
//!   that holds for what was acknowledged ([`Device::sync`], [`Device::acknowledge`], or by itself).
//! - Memory is bounded: a full outbox refuses, and events that are not read leave the rest at the server.
//!
//! # Who trusts whom
//! No certificate authorities are built in: an application passes the roots that it trusts, its own CA or those of the
//! platform (the crates `webpki-roots` and `rustls-native-certs` give a [`rustls::RootCertStore`]).

mod backoff;
mod builder;
mod core;
mod cursor;
mod device;
mod dial;
mod error;
mod event;
mod families;
mod inbox;
pub mod limits;
mod link;
mod networks;
mod outbox;
mod payloads;
mod receipts;
mod requests;
mod silence;
mod task;
mod tickets;
mod tls;
mod token;
mod transport;

pub use builder::Builder;
pub use device::{Device, State, Ticket};
pub use error::{BuildError, CloseReason, Refusal, RequestError, SendError};
pub use event::{Accepted, AckTarget, Acknowledged, Content, Event, Media, Message, Refused, Session};
pub use families::{Admission, Contact, Page, Presence, Reach, Revoke};
pub use inbox::Events;
pub use outbox::{Backlog, Draft, FileOutbox, MemoryOutbox, Outbox};
pub use requests::Sent;
pub use token::{TokenError, TokenSource};
pub use transport::{Transport, Transports};
