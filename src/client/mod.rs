//! The device side of BIMip: one handle that signs in, sends, receives, and reconnects by itself.
//!
//! [`Device::builder`] starts a device and returns two halves: the [`Device`], a handle with which the application
//! sends and asks, and [`Events`], the stream of what arrives. A background task on the tokio runtime owns the
//! connection.
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
//! // Read events in a task of their own: a device whose events are not read stops reading from the server.
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
//! // Returns once the message is durable at the server, however often the network failed in between.
//! let sent = device.send_text(&Eid::parse("bob@example.org")?, "Hey Bob!").await?;
//! println!("version {} after {:?}", sent.version, sent.latency);
//! device.close().await;
//! # Ok(())
//! # }
//! ```
//!
//! # What it promises
//! - A message for which `send_text` returned `Ok` is durable at the server. Until a message is answered, the device
//!   sends it again on every new connection, with the same local id and in the same order; the server accepts it only
//!   once. (The server remembers local ids for at least seven days.) Texts keep their order among themselves, and so do
//!   media messages. A text and a media message use different lanes, so either may arrive first.
//! - Every entry of the user's log arrives as an event once and in order, across reconnects. (After the server was
//!   restored from a backup some may come a second time: [`Session::gap`].) Across restarts of the
//!   process this holds for entries up to the position that was told with [`Device::sync`] or automatically
//!   ([`Builder::auto_sync`]), and for a device whose outbox keeps no position also for those that it acknowledged.
//! - Memory is bounded: a full outbox refuses new messages, and while events are not read, the rest stays at the
//!   server. [`limits`] lists every bound.
//!
//! # Surviving a restart
//! By default, unanswered messages are lost when the process ends. [`FileOutbox`] keeps them in a file. An application
//! that stores what it receives should switch [`Builder::auto_sync`] off and call [`Device::sync`] once it has stored
//! an entry.
//!
//! # Which server is trusted
//! No certificate authorities are built in. The application passes the roots that it trusts: its own CA, or those of
//! the platform (the crates `webpki-roots` and `rustls-native-certs` supply a [`rustls::RootCertStore`]).

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
pub use event::{Accepted, AckTarget, Acknowledged, Content, Event, Media, Message, NotSent, Refused, Session};
pub use families::{Admission, Contact, Page, Presence, Reach, Revoke};
pub use inbox::Events;
pub use outbox::{Backlog, Draft, FileOutbox, MemoryOutbox, Outbox};
pub use requests::Sent;
pub use token::{TokenError, TokenSource};
pub use transport::{Transport, Transports};
