//! Pages of a chat, with the current acknowledgment states (protocol.md §10).

use prost::Message as _;

use crate::limits::{HISTORY_PAGE_DEFAULT, HISTORY_PAGE_MAX};
use crate::store::{HistoryMessage, HistoryQuery, StoreError};
use crate::wire::proto::{ChatMessage, HistoryPage, HistoryRequest};
use crate::wire::{ChatId, Eid, Lane, Payload, Version};

use super::fault::Fault;
use super::{Call, Origin, Phase, Session, render};

/// Bytes of a page besides its messages: envelope, chat id and lengths.
const PAGE_OVERHEAD_BYTES: usize = 128;
/// Bytes of tag and length for each message of a page.
const PAGE_ENTRY_OVERHEAD_BYTES: usize = 6;

impl Session {
    /// HistoryRequest (protocol.md §10).
    pub(super) fn history(&mut self, origin: Origin, request: &HistoryRequest) -> Result<(), Fault> {
        let Phase::Open(open) = &mut self.phase else { return Ok(()) };
        let peer = Eid::from_identity(request.peer.as_ref())?;
        if peer == open.user {
            return Err(Fault::malformed("a chat with oneself"));
        }
        let limit = match request.limit {
            0 => HISTORY_PAGE_DEFAULT,
            limit => usize::try_from(limit)
                .ok()
                .filter(|limit| *limit <= HISTORY_PAGE_MAX)
                .ok_or_else(|| Fault::malformed("limit is 1 to 200"))?,
        };
        if request.before_version < 0 || request.after_version < 0 {
            return Err(Fault::malformed("a version is negative"));
        }
        let bound = |version| (version > 0).then(|| Version::from_wire(version));
        let (before, after) = (bound(request.before_version), bound(request.after_version));
        // One message more than asked for tells whether the page is the last.
        let (limit, bytes_max) = (limit + 1, self.services.settings.frame_bytes_max);
        let query = HistoryQuery { reader: open.user.clone(), peer, before, after, limit, bytes_max };
        open.paging += 1;
        self.call(Call::History(origin, Box::new(query)));
        Ok(())
    }

    pub(super) fn history_page(
        &mut self,
        origin: Origin,
        query: &HistoryQuery,
        page: Result<Vec<HistoryMessage>, StoreError>,
    ) {
        if let Phase::Open(open) = &mut self.phase {
            open.paging -= 1;
        }
        match page {
            Err(error) => self.refuse(origin, Fault::from(&error)),
            Ok(mut messages) => {
                let limit = query.limit - 1;
                let complete = messages.len() <= limit;
                let forwards = query.after.is_some() && query.before.is_none();
                if !complete {
                    // The surplus message lies at the far end of the direction asked for.
                    messages.remove(if forwards { messages.len() - 1 } else { 0 });
                }
                let messages = messages.iter().map(|message| render::history(message, &query.reader)).collect();
                let (messages, cut) = fit(messages, forwards, self.services.settings.frame_bytes_max);
                let chat_id = ChatId::between(&query.reader, &query.peer).to_string();
                let page = HistoryPage { chat_id, messages, complete: complete && !cut };
                self.send(Lane::Chat, origin.request_id, Payload::HistoryPage(page));
            }
        }
    }
}

/// Keeps as many messages as one frame holds, from the near end of the direction asked for. Returns `true` if some were left
/// out. One message always fits.
fn fit(mut messages: Vec<ChatMessage>, forwards: bool, frame_bytes_max: usize) -> (Vec<ChatMessage>, bool) {
    let mut room = frame_bytes_max.saturating_sub(PAGE_OVERHEAD_BYTES);
    let mut fits = |message: &ChatMessage| {
        room = room.saturating_sub(message.encoded_len() + PAGE_ENTRY_OVERHEAD_BYTES);
        room > 0
    };
    let whole = messages.len();
    if forwards {
        let kept = messages.iter().take_while(|message| fits(message)).count();
        messages.truncate(kept.max(1));
    } else {
        let kept = messages.iter().rev().take_while(|message| fits(message)).count();
        messages.drain(..whole.saturating_sub(kept.max(1)));
    }
    let cut = messages.len() < whole;
    (messages, cut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::SESSION_HISTORY_CALLS_MAX;
    use crate::session::Output;
    use crate::session::testing::House;
    use crate::store::testing::{device, eid};

    #[tokio::test]
    async fn chat_is_not_read_while_too_many_pages_are() {
        let house = House::new(|_, _| ());
        let mut phone = house.bare(&eid("alice"), &device("phone")).await;
        let all = phone.session.wanted();
        let mut calls = Vec::new();
        for _ in 0..SESSION_HISTORY_CALLS_MAX {
            assert_eq!(phone.session.wanted(), all);
            let peer = Some(eid("bob").identity());
            phone.hear(Lane::Chat, Payload::HistoryRequest(HistoryRequest { peer, ..HistoryRequest::default() }));
            let Some(Output::Call(call)) = phone.outputs().pop() else { panic!("no call") };
            calls.push(call);
        }
        for lane in Lane::ALL {
            assert_eq!(phone.session.wanted().contains(lane), lane != Lane::Chat, "{lane:?}");
        }
        phone.answer(calls.remove(0)).await;
        assert_eq!(phone.session.wanted(), all);
    }
}
