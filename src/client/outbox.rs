//! What waits to be sent, kept beyond the process where the application wants that.

mod file;

use std::io;

use super::error::SendError;
use super::event::Content;
use super::limits::{CAPTION_BYTES_MAX, TEXT_BYTES_MAX, URL_BYTES_MAX};
use crate::wire::proto::{MediaPayloadRequest, TextPayloadRequest};
use crate::wire::{ChatId, DeviceId, Eid, Lane, LocalId, Payload, Sequence};

pub use file::FileOutbox;

/// A message that is not answered yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The device's own name for it. The server takes a name once: sending the same draft again is harmless.
    pub local_id: LocalId,
    /// Who receives it.
    pub to: Eid,
    /// What it says.
    pub content: Content,
    /// When it was written, Unix milliseconds.
    pub created_at: i64,
}

/// What an outbox held when the application was started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Unanswered messages in the order in which they were written.
    pub drafts: Vec<Draft>,
    /// The newest entry of the log that the application had taken; `None` leaves it to the server's stored cursor.
    pub cursor: Option<Sequence>,
}

/// Keeps unanswered messages, and the place in the log, beyond the process.
///
/// Called from the device's task, one call at a time; a call should return within milliseconds.
pub trait Outbox: Send + 'static {
    /// What is left from before. Called once, first. What it keeps from here on is `owner`'s: an outbox that holds another
    /// user's messages must refuse, or they would be sent in this one's name.
    ///
    /// # Errors
    /// Whatever the storage says; the device is not built then.
    fn load(&mut self, owner: &Eid) -> io::Result<Backlog>;

    /// Keeps a message. The device sends it only after this has returned.
    ///
    /// # Errors
    /// Whatever the storage says; the message is not sent then.
    fn insert(&mut self, draft: &Draft) -> io::Result<()>;

    /// Forgets a message: the server has it, or refused it.
    ///
    /// # Errors
    /// Whatever the storage says. The message is sent once more after a restart, which is harmless.
    fn remove(&mut self, local_id: &LocalId) -> io::Result<()>;

    /// The application has taken every entry up to here.
    ///
    /// # Errors
    /// Whatever the storage says. Some entries come once more after a restart.
    fn advance(&mut self, cursor: Sequence) -> io::Result<()>;
}

/// Keeps nothing beyond the process: the device itself holds what is unanswered.
#[derive(Clone, Copy, Debug, Default)]
pub struct MemoryOutbox;

impl Outbox for MemoryOutbox {
    fn load(&mut self, _owner: &Eid) -> io::Result<Backlog> {
        Ok(Backlog::default())
    }

    fn insert(&mut self, _draft: &Draft) -> io::Result<()> {
        Ok(())
    }

    fn remove(&mut self, _local_id: &LocalId) -> io::Result<()> {
        Ok(())
    }

    fn advance(&mut self, _cursor: Sequence) -> io::Result<()> {
        Ok(())
    }
}

impl Draft {
    /// What the server would refuse in any case is refused before it takes a place (profile 7).
    pub(crate) fn check(&self, own: &Eid) -> Result<(), SendError> {
        if self.to == *own {
            return Err(SendError::Invalid("the recipient is the sender"));
        }
        match &self.content {
            Content::Text(text) if text.is_empty() => Err(SendError::Invalid("the text is empty")),
            Content::Text(text) if text.len() > TEXT_BYTES_MAX => Err(SendError::Invalid("the text is over 16 KiB")),
            Content::Media(media) if media.url.is_empty() => Err(SendError::Invalid("the media address is empty")),
            Content::Media(media) if media.url.len() > URL_BYTES_MAX => {
                Err(SendError::Invalid("the media address is over 2 KiB"))
            }
            Content::Media(media) if media.thumbnail_url.len() > URL_BYTES_MAX => {
                Err(SendError::Invalid("the thumbnail's address is over 2 KiB"))
            }
            Content::Media(media) if media.caption.len() > CAPTION_BYTES_MAX => {
                Err(SendError::Invalid("the caption is over 1 KiB"))
            }
            _ => Ok(()),
        }
    }

    /// The request that sends it, and its lane (5.9.1).
    pub(crate) fn payload(&self, own: &Eid, device: &DeviceId) -> (Lane, Payload) {
        let from = Some(own.device_identity(device));
        let to = vec![self.to.identity()];
        let message_id_local = self.local_id.to_string();
        match &self.content {
            Content::Text(text) => (
                Lane::Chat,
                Payload::TextPayloadRequest(TextPayloadRequest {
                    from,
                    to,
                    content: text.clone(),
                    message_id_local,
                    text_size_count: text.chars().count().to_string(),
                    created_at: self.created_at,
                }),
            ),
            Content::Media(media) => (
                Lane::Media,
                Payload::MediaPayloadRequest(MediaPayloadRequest {
                    from,
                    to,
                    message_id_local,
                    chat_id: ChatId::between(own, &self.to).to_string(),
                    r#type: media.kind.code(),
                    caption: media.caption.clone(),
                    thumbnail_url: media.thumbnail_url.clone(),
                    cdn_url_id: media.url.clone(),
                    media_size_bytes: media.size_bytes,
                    created_at: self.created_at,
                }),
            ),
        }
    }
}
