//! The input line: editing, and recalling earlier lines.

use std::collections::VecDeque;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::super::limits::CHAT_RECALL_MAX;

/// Text with a cursor between its characters.
#[derive(Default)]
pub(super) struct Input {
    text: Vec<char>,
    cursor: usize,
    /// Entered lines, newest last.
    entered: VecDeque<String>,
    /// How many lines back the recall is; 0 is the line being written.
    back: usize,
}

impl Input {
    pub(super) fn text(&self) -> String {
        self.text.iter().collect()
    }

    pub(super) fn before_cursor(&self) -> String {
        self.text[..self.cursor].iter().collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Takes the line and adds it to those that can be recalled.
    pub(super) fn take(&mut self) -> String {
        let text = self.text();
        self.set("");
        self.back = 0;
        if !text.trim().is_empty() && self.entered.back() != Some(&text) {
            self.entered.push_back(text.clone());
            if self.entered.len() > CHAT_RECALL_MAX {
                self.entered.pop_front();
            }
        }
        text
    }

    /// Inserts pasted text. Keeps line breaks, as a message may have several lines; drops other control characters.
    pub(super) fn insert(&mut self, text: &str) {
        let text = text.replace("\r\n", "\n").replace('\r', "\n");
        for c in text.chars().filter(|c| *c == '\n' || !c.is_control()) {
            self.text.insert(self.cursor, c);
            self.cursor += 1;
        }
    }

    /// Handles a key; false if it is not an editing key.
    pub(super) fn key(&mut self, key: KeyEvent) -> bool {
        let control = key.modifiers.contains(KeyModifiers::CONTROL);
        let alt = key.modifiers.contains(KeyModifiers::ALT);
        match key.code {
            KeyCode::Char('a') if control => self.cursor = 0,
            KeyCode::Char('e') if control => self.cursor = self.text.len(),
            KeyCode::Char('u') if control => drop(self.text.drain(..std::mem::take(&mut self.cursor))),
            KeyCode::Char('k') if control => self.text.truncate(self.cursor),
            KeyCode::Char('w') if control => self.erase_word(),
            KeyCode::Backspace if control || alt => self.erase_word(),
            KeyCode::Char('b') if alt => self.cursor = self.word_begin(),
            KeyCode::Char('f') if alt => self.cursor = self.word_end(),
            KeyCode::Char(_) if control || alt => return false,
            KeyCode::Char(c) => {
                self.text.insert(self.cursor, c);
                self.cursor += 1;
            }
            KeyCode::Left if control => self.cursor = self.word_begin(),
            KeyCode::Right if control => self.cursor = self.word_end(),
            KeyCode::Left => self.cursor = self.cursor.saturating_sub(1),
            KeyCode::Right => self.cursor = (self.cursor + 1).min(self.text.len()),
            KeyCode::Home => self.cursor = 0,
            KeyCode::End => self.cursor = self.text.len(),
            KeyCode::Backspace if self.cursor > 0 => {
                self.cursor -= 1;
                self.text.remove(self.cursor);
            }
            KeyCode::Delete if self.cursor < self.text.len() => drop(self.text.remove(self.cursor)),
            KeyCode::Backspace | KeyCode::Delete => {}
            KeyCode::Up => self.recall(self.back + 1),
            KeyCode::Down => self.recall(self.back.saturating_sub(1)),
            _ => return false,
        }
        true
    }

    fn recall(&mut self, back: usize) {
        if back > self.entered.len() || (back == 0 && self.back == 0) {
            return;
        }
        self.back = back;
        let text = match back {
            0 => String::new(),
            back => self.entered[self.entered.len() - back].clone(),
        };
        self.set(&text);
    }

    fn set(&mut self, text: &str) {
        self.text = text.chars().collect();
        self.cursor = self.text.len();
    }

    fn erase_word(&mut self) {
        let begin = self.word_begin();
        self.text.drain(begin..self.cursor);
        self.cursor = begin;
    }

    fn word_begin(&self) -> usize {
        let before = &self.text[..self.cursor];
        let word = before.iter().rposition(|c| !c.is_whitespace()).map_or(0, |last| last + 1);
        before[..word].iter().rposition(|c| c.is_whitespace()).map_or(0, |space| space + 1)
    }

    fn word_end(&self) -> usize {
        let after = &self.text[self.cursor..];
        let word = after.iter().position(|c| !c.is_whitespace()).unwrap_or(after.len());
        let end = after[word..].iter().position(|c| c.is_whitespace()).unwrap_or(after.len() - word);
        self.cursor + word + end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn press(input: &mut Input, code: KeyCode, modifiers: KeyModifiers) {
        assert!(input.key(KeyEvent::new(code, modifiers)));
    }

    fn typed(text: &str) -> Input {
        let mut input = Input::default();
        input.insert(text);
        input
    }

    #[test]
    fn a_line_is_edited_as_in_a_shell() {
        let mut input = typed("hello brave world");
        press(&mut input, KeyCode::Char('w'), KeyModifiers::CONTROL);
        assert_eq!(input.text(), "hello brave ");
        press(&mut input, KeyCode::Left, KeyModifiers::CONTROL);
        assert_eq!(input.before_cursor(), "hello ");
        press(&mut input, KeyCode::Char('ä'), KeyModifiers::NONE);
        press(&mut input, KeyCode::Delete, KeyModifiers::NONE);
        assert_eq!(input.text(), "hello ärave ");
        press(&mut input, KeyCode::Home, KeyModifiers::NONE);
        press(&mut input, KeyCode::Right, KeyModifiers::CONTROL);
        assert_eq!(input.before_cursor(), "hello");
        press(&mut input, KeyCode::Char('k'), KeyModifiers::CONTROL);
        press(&mut input, KeyCode::Backspace, KeyModifiers::NONE);
        assert_eq!(input.text(), "hell");
        press(&mut input, KeyCode::Char('u'), KeyModifiers::CONTROL);
        assert!(input.is_empty());
        for code in [KeyCode::Backspace, KeyCode::Delete, KeyCode::Left, KeyCode::Right] {
            press(&mut input, code, KeyModifiers::NONE);
        }
        press(&mut input, KeyCode::Char('w'), KeyModifiers::CONTROL);
        assert!(input.is_empty());
    }

    #[test]
    fn what_was_entered_can_be_recalled() {
        let mut input = typed("one");
        assert_eq!(input.take(), "one");
        input.insert("two");
        input.take();
        for expected in ["two", "one", "one"] {
            press(&mut input, KeyCode::Up, KeyModifiers::NONE);
            assert_eq!(input.text(), expected);
        }
        press(&mut input, KeyCode::Down, KeyModifiers::NONE);
        assert_eq!(input.text(), "two");
        press(&mut input, KeyCode::Down, KeyModifiers::NONE);
        assert!(input.is_empty());
    }

    #[test]
    fn pasted_lines_stay_lines() {
        assert_eq!(typed("a\r\nb\u{1b}[31m\tc").text(), "a\nb[31mc");
    }
}
