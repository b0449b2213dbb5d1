//! The baseline: accepts everything and stores nothing.

use super::Engine;
use crate::workload::{Message, Space};
use anyhow::Result;

pub struct None;

impl Engine for None {
    fn commit(&mut self, group: &[Message]) -> Result<()> {
        std::hint::black_box(group);
        Ok(())
    }

    fn get(&self, _: Space, _: &[u8], _: &mut Vec<u8>) -> Result<bool> {
        Ok(false)
    }

    fn tail(&self, _: &[u8], _: usize, _: &mut dyn FnMut(&[u8], &[u8])) -> Result<usize> {
        Ok(0)
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}
