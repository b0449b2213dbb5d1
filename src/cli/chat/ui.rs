//! Draws the chat: takes the state, fills the cells of the terminal.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Position, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Borders, Paragraph};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::super::event_line::media_words;
use super::app::{App, Connection};
use super::command::HELP;
use super::conversation::{Conversation, Entry, Progress};
use crate::client::Content;
use crate::wire::AwarenessStatus;

/// Narrower terminals show only the open conversation.
const WITH_LIST_FROM: u16 = 64;
const LIST_WIDTH: u16 = 26;
const OWN: Color = Color::Green;
const READ: Color = Color::LightBlue;

/// The size of the open conversation as drawn.
pub(super) struct Drawn {
    pub(super) lines: usize,
    pub(super) height: usize,
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame, app: &App, zone: &TimeZone) -> Drawn {
    let [body, status] = Layout::vertical([Constraint::Min(1), Constraint::Length(1)]).areas(frame.area());
    let list_width = if body.width < WITH_LIST_FROM { 0 } else { LIST_WIDTH };
    let [list, chat] = Layout::horizontal([Constraint::Length(list_width), Constraint::Min(1)]).areas(body);
    if list_width > 0 {
        conversations(frame, list, app);
    }
    let [head, messages, input] =
        Layout::vertical([Constraint::Length(2), Constraint::Min(1), Constraint::Length(2)]).areas(chat);
    header(frame, head, app);
    let drawn = match app.opened() {
        _ if app.help => help(frame, messages),
        None => welcome(frame, messages, app),
        Some(conversation) => history(frame, messages, conversation, zone),
    };
    line_input(frame, input, app);
    status_line(frame, status, app);
    drawn
}

// --- Left -----------------------------------------------------------------------------------------------------------

fn conversations(frame: &mut Frame, area: Rect, app: &App) {
    let block = Block::new().borders(Borders::RIGHT).border_style(faint());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let width = usize::from(inner.width);
    let mut lines = vec![Line::from(cut(&format!(" {}", app.own), width).bold()), Line::default()];
    for conversation in &app.conversations {
        let unread = match conversation.unread() {
            0 => String::new(),
            unread => format!(" {unread} "),
        };
        let name = cut(conversation.name(), width.saturating_sub(4 + unread.width()));
        let gap = width.saturating_sub(3 + name.width() + unread.width());
        let mut line = Line::from(vec![
            Span::raw(" "),
            dot(app.presence_of(&conversation.peer)),
            Span::raw(format!(" {name}{}", " ".repeat(gap))),
            Span::styled(unread.clone(), Style::new().fg(Color::Black).bg(Color::Yellow)),
        ]);
        if app.is_open(conversation) {
            line = line.style(Style::new().add_modifier(Modifier::REVERSED));
        } else if !unread.is_empty() {
            line = line.style(Style::new().add_modifier(Modifier::BOLD));
        }
        lines.push(line);
    }
    frame.render_widget(Paragraph::new(lines), inner);
}

fn dot(status: Option<AwarenessStatus>) -> Span<'static> {
    match status {
        None | Some(AwarenessStatus::Unknown) => Span::raw(" "),
        Some(AwarenessStatus::Online) => "●".green(),
        Some(AwarenessStatus::Idle | AwarenessStatus::Away) => "●".yellow(),
        Some(AwarenessStatus::Busy | AwarenessStatus::DoNotDisturb) => "●".red(),
        Some(AwarenessStatus::Offline | AwarenessStatus::Invisible) => "○".dark_gray(),
    }
}

// --- Middle ---------------------------------------------------------------------------------------------------------

fn header(frame: &mut Frame, area: Rect, app: &App) {
    let block = Block::new().borders(Borders::BOTTOM).border_style(faint());
    let mut line = Line::default();
    if let Some(conversation) = app.opened() {
        line.push_span(Span::raw(" "));
        line.push_span(conversation.name().to_owned().bold());
        if !conversation.nickname.is_empty() {
            line.push_span(Span::styled(format!("  {}", conversation.peer), faint()));
        }
        let status = app.presence_of(&conversation.peer).filter(|status| *status != AwarenessStatus::Unknown);
        if let Some(status) = status {
            line.push_span(Span::raw("  "));
            line.push_span(dot(Some(status)));
            line.push_span(Span::styled(format!(" {}", status.name().replace('_', " ")), faint()));
        }
    }
    frame.render_widget(Paragraph::new(line).block(block), area);
}

fn welcome(frame: &mut Frame, area: Rect, app: &App) -> Drawn {
    let mut lines = vec![Line::default()];
    if app.conversations.is_empty() {
        lines.push(Line::from(" Nobody has written yet."));
    }
    lines.push(Line::from(" /to bob@localhost opens a conversation, tab goes through them, /help has the rest."));
    frame.render_widget(Paragraph::new(lines).style(faint()), area);
    Drawn { lines: 0, height: usize::from(area.height) }
}

fn help(frame: &mut Frame, area: Rect) -> Drawn {
    let lines: Vec<_> = HELP
        .iter()
        .map(|(what, does)| Line::from(vec![Span::raw(format!(" {what:<22} ")), Span::styled(*does, faint())]))
        .collect();
    frame.render_widget(Paragraph::new(lines), area);
    Drawn { lines: 0, height: usize::from(area.height) }
}

/// Draws the newest message at the bottom, or earlier ones if the conversation is scrolled.
fn history(frame: &mut Frame, area: Rect, conversation: &Conversation, zone: &TimeZone) -> Drawn {
    let (width, height) = (usize::from(area.width), usize::from(area.height));
    let mut lines = Vec::new();
    let edge = match (conversation.loading, conversation.has_older()) {
        (true, _) => Some("loading older messages …"),
        (false, true) => Some("page up for older messages"),
        (false, false) if conversation.shown().next().is_none() => Some("no messages yet: say hello"),
        (false, false) => None,
    };
    lines.extend(edge.map(|text| Line::styled(text, faint()).alignment(Alignment::Center)));
    let mut day = None;
    for entry in conversation.shown() {
        let at = Timestamp::from_millisecond(entry.at).unwrap_or_default().to_zoned(zone.clone());
        if day != Some(at.date()) {
            day = Some(at.date());
            let text = format!("── {} ──", at.strftime("%A %-d %B"));
            lines.push(Line::styled(text, faint()).alignment(Alignment::Center));
        }
        bubble(&mut lines, entry, &at.strftime("%H:%M").to_string(), width);
    }
    let total = lines.len();
    let scroll = conversation.scroll.min(total.saturating_sub(height));
    let end = total - scroll;
    let shown: Vec<_> = lines.drain(end.saturating_sub(height)..end).collect();
    // If there are fewer lines than fit, they are at the bottom, next to the input line.
    let top = area.height.saturating_sub(u16::try_from(shown.len()).unwrap_or(area.height));
    let at = Rect { y: area.y + top, height: area.height - top, ..area };
    frame.render_widget(Paragraph::new(shown), at);
    if scroll > 0 && height > 0 {
        let text = format!(" ↓ {scroll} more lines: page down, esc ");
        let width = u16::try_from(text.width()).unwrap_or(area.width).min(area.width);
        let at = Rect { x: area.x + area.width - width, y: area.y + area.height - 1, width, height: 1 };
        frame.render_widget(Paragraph::new(text.black().on_yellow()), at);
    }
    Drawn { lines: total, height }
}

/// Own messages are on the right with their progress, others on the left.
fn bubble(lines: &mut Vec<Line<'static>>, entry: &Entry, at: &str, width: usize) {
    let (text, style) = match &entry.content {
        Content::Text(text) => (text.clone(), Style::new()),
        Content::Media(media) => (media_words(media), Style::new().add_modifier(Modifier::ITALIC)),
    };
    let wrapped = wrap(&text, (width * 4 / 5).saturating_sub(10).max(8));
    let last = wrapped.len() - 1;
    let widest = wrapped.iter().map(|line| line.width()).max().unwrap_or(0);
    for (index, text) in wrapped.into_iter().enumerate() {
        if !entry.own {
            let margin = if index == 0 { format!(" {at} ") } else { " ".repeat(at.len() + 2) };
            lines.push(Line::from(vec![Span::styled(margin, faint()), Span::styled(text, style)]));
            continue;
        }
        // A block at the right edge; its last line has the time and the progress.
        let text = format!("{text}{}", " ".repeat(widest - text.width()));
        let margin = if index == last { format!(" {at} ") } else { " ".repeat(at.len() + 2) };
        let tick = if index == last { progress(entry.progress) } else { Span::raw("  ") };
        let spans = vec![Span::styled(text, style.fg(OWN)), Span::styled(margin, faint()), tick, Span::raw(" ")];
        lines.push(Line::from(spans).alignment(Alignment::Right));
    }
}

fn progress(progress: Progress) -> Span<'static> {
    match progress {
        Progress::Waiting => "◷ ".dark_gray(),
        Progress::Sent => "✓ ".gray(),
        Progress::Delivered => "✓✓".gray(),
        Progress::Read => Span::styled("✓✓", Style::new().fg(READ).add_modifier(Modifier::BOLD)),
        Progress::Refused => "✗ ".red(),
    }
}

/// Breaks text into lines of at most `width` cells, between words where possible.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.split('\n') {
        let (mut line, mut used) = (String::new(), 0);
        for word in paragraph.replace('\t', " ").split_inclusive(' ') {
            let word: String = word.chars().filter(|c| !c.is_control()).collect();
            if used > 0 && used + word.trim_end().width() > width {
                lines.push(std::mem::take(&mut line).trim_end().to_owned());
                used = 0;
            }
            for c in word.chars() {
                let cells = c.width().unwrap_or(0);
                if used + cells > width && c != ' ' {
                    lines.push(std::mem::take(&mut line));
                    used = 0;
                }
                line.push(c);
                used += cells;
            }
        }
        lines.push(line.trim_end().to_owned());
    }
    lines
}

// --- Below ----------------------------------------------------------------------------------------------------------

fn line_input(frame: &mut Frame, area: Rect, app: &App) {
    let block = Block::new().borders(Borders::TOP).border_style(faint());
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let room = usize::from(inner.width.saturating_sub(4));
    let before = visible(&app.input.before_cursor());
    // Keep the cursor visible: text that does not fit is cut off on the left.
    let mut skip = before.width().saturating_sub(room);
    let text: String = visible(&app.input.text())
        .chars()
        .skip_while(|c| {
            let hidden = skip > 0;
            skip = skip.saturating_sub(c.width().unwrap_or(0));
            hidden
        })
        .collect();
    let line = match app.input.is_empty() {
        true => Line::from(vec![" › ".bold(), Span::styled("write a message, /help for more", faint())]),
        false => Line::from(vec![" › ".bold(), Span::raw(text)]),
    };
    frame.render_widget(Paragraph::new(line), inner);
    let cursor = u16::try_from(before.width().min(room)).unwrap_or(0);
    frame.set_cursor_position(Position::new(inner.x + 3 + cursor, inner.y));
}

/// Shows line breaks as a symbol, because the input has one line.
fn visible(text: &str) -> String {
    text.replace('\n', "⏎")
}

fn status_line(frame: &mut Frame, area: Rect, app: &App) {
    let style = Style::new().bg(Color::Indexed(236)).fg(Color::Gray);
    if let Some(notice) = &app.notice {
        let text = cut(&format!(" {notice}"), usize::from(area.width));
        frame.render_widget(Paragraph::new(text).style(style.fg(Color::Yellow)), area);
        return;
    }
    let mut left = match &app.connection {
        Connection::Open { session, transport } => {
            let session: String = session.chars().take(8).collect();
            let took = app.round_trip.map_or("…".to_owned(), |time| format!("{:.1} ms", time.as_secs_f64() * 1e3));
            let over = transport.name().to_uppercase();
            vec![" ● ".green(), Span::raw(format!("connected  {took}  {over}, session {session}"))]
        }
        Connection::Connecting => vec![" ◌ ".yellow(), Span::raw("connecting …")],
        Connection::Waiting { seconds: 0, reason } => {
            vec![" ◌ ".yellow(), Span::raw(format!("trying again: {reason}"))]
        }
        Connection::Waiting { seconds, reason } => {
            vec![" ◌ ".yellow(), Span::raw(format!("trying again within {seconds} s (ctrl-r: now): {reason}"))]
        }
        Connection::Closed { reason } => vec![" ○ ".red(), Span::raw(format!("ctrl-r to come back: {reason}"))],
    };
    let unread = app.unread();
    if unread > 0 {
        left.push(Span::styled(format!("  {unread} unread"), Style::new().fg(Color::Yellow)));
    }
    let left = Line::from(left);
    let hints = format!("{}  /help ", app.device);
    let hints_width = if left.width() + hints.width() + 2 > usize::from(area.width) { 0 } else { hints.width() };
    let [left_area, right_area] =
        Layout::horizontal([Constraint::Min(1), Constraint::Length(u16::try_from(hints_width).unwrap_or(0))])
            .areas(area);
    frame.render_widget(Paragraph::new(left).style(style), left_area);
    frame.render_widget(Paragraph::new(hints).style(style), right_area);
}

fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut used = 1;
    let kept = text.chars().take_while(|c| {
        used += c.width().unwrap_or(0);
        used <= width
    });
    kept.chain(['…']).collect()
}

fn faint() -> Style {
    Style::new().fg(Color::DarkGray)
}

#[cfg(test)]
mod tests;
