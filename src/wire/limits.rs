//! Bounds of the protocol that both sides keep: the device before it sends, the server when it receives.

/// Longest text in bytes of UTF-8 (protocol.md §7).
pub const TEXT_BYTES_MAX: usize = 16 * 1024;
/// Longest caption of a media message, in bytes of UTF-8 (protocol.md §7).
pub const CAPTION_BYTES_MAX: usize = 1024;
/// Longest address of a media file or of its thumbnail, in bytes (protocol.md §7): browsers and proxies handle as much without
/// trouble.
pub const URL_BYTES_MAX: usize = 2048;
/// Longest frame in bytes that a device accepts from the server, and so the most that a server may be configured to send: four
/// times its default. A phone should not have to hold more than this for one frame.
pub const DEVICE_FRAME_BYTES_MAX: usize = 256 * 1024;
