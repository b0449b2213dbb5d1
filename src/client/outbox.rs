//! Messages that wait to be sent, and their optional storage beyond the process.

mod file;

use std::io;

use super::error::SendError;
use super::event::Content;
use crate::wire::proto::{MediaPayloadRequest, TextPayloadRequest};
use crate::wire::{
    CAPTION_BYTES_MAX, ChatId, DeviceId, Eid, Lane, LocalId, Payload, Sequence, TEXT_BYTES_MAX, URL_BYTES_MAX,
};

pub use file::FileOutbox;

/// A message to send, or one that the server has not answered yet. [`super::Device::draft`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// The sender's id of the message. The server accepts each id once, so sending the same draft again is harmless.
    pub local_id: LocalId,
    /// The recipient; not the user itself.
    pub to: Eid,
    /// The content.
    pub content: Content,
    /// When it was written, in Unix milliseconds.
    pub created_at: i64,
}

/// What an outbox held when the application started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Unanswered messages, in the order in which they were written.
    pub drafts: Vec<Draft>,
    /// The newest entry of the log that is safe with the application, so that delivery continues after it. `None`: the
    /// server's stored cursor decides.
    pub cursor: Option<Sequence>,
}

/// Storage for unanswered messages and the position in the log, beyond the process.
///
/// The device's task calls it, one call at a time. Calls block that task, so each should return within milliseconds.
/// [`FileOutbox`] is an implementation in one file, [`MemoryOutbox`] one that stores nothing.
pub trait Outbox: Send + 'static {
    /// Returns what is left from earlier. Called once, before anything else, with the user that the device signs in. An
    /// outbox that holds messages of another user must return an error, or they would be sent in this user's name.
    ///
    /// # Errors
    /// Any error of the storage, or messages of another user. [`super::Builder::connect`] then fails with
    /// [`super::BuildError::Outbox`].
    fn load(&mut self, owner: &Eid) -> io::Result<Backlog>;

    /// Stores a message. The device sends it only after this has returned.
    ///
    /// # Errors
    /// Any error of the storage. The message is not sent, and the caller gets [`SendError::Outbox`].
    fn insert(&mut self, draft: &Draft) -> io::Result<()>;

    /// Removes a message: the server has accepted or refused it.
    ///
    /// # Errors
    /// Any error of the storage. The device logs it. The message may be sent once more after a restart, which is
    /// harmless.
    fn remove(&mut self, local_id: &LocalId) -> io::Result<()>;

    /// Stores the position up to which every entry of the log is safe with the application. It is lower than the one
    /// before if the server lost its data and started another log.
    ///
    /// # Errors
    /// Any error of the storage. The device logs it. Some entries may be delivered once more after a restart.
    fn advance(&mut self, cursor: Sequence) -> io::Result<()>;
}

/// An outbox that stores nothing: unanswered messages are held in the device's memory and end with the process.
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
    /// Checks the rules of protocol.md §7 here, so that a message that the server would refuse takes no place in the
    /// outbox.
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

    /// The request that sends the draft, and its lane (BIMip-Foundation 5.9.1).
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
