//! The stream in which a disk image travels from the command line to a gateway: holes left out, a cut told from an end.
//!
//! ```text
//! header     8  magic "CGSPARS1"
//!            8  size of the image, or u64::MAX when only the end frame knows it
//!            4  crc32c of the 16 bytes before
//! frame      8  offset in the image, ascending; never within an earlier frame
//!            4  length, 1 to 1 MiB
//!            4  crc32c over offset, length and data
//!            …  data
//! pause      8  u64::MAX - 1
//!            4  0
//!            4  crc32c, as of a frame
//! end        8  u64::MAX
//!            4  48
//!            4  crc32c, as of a frame
//!            8  size of the image
//!            8  number of frames, without pauses
//!           32  blake3 over every byte before this end frame
//! ```
//!
//! All numbers are little-endian. What no frame covers is zeroes. A pause says that the sender is there and has nothing to
//! send: zeroes to read over, or an image that comes slowly. Nothing may follow the end frame, and a stream without one is
//! a cut upload.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::error::{Error, Result};
use crate::limits::VOLUME_BYTES_MAX;

/// First bytes of the stream.
pub const MAGIC: [u8; 8] = *b"CGSPARS1";
/// Most data bytes of one frame.
pub const FRAME_BYTES_MAX: usize = 1024 * 1024;
/// The media type of such a stream.
pub const MEDIA_TYPE: &str = "application/vnd.clonegate.sparse";

const HEADER_BYTES: usize = 20;
const FRAME_HEAD_BYTES: usize = 16;
const END_BYTES: usize = 48;
const UNKNOWN: u64 = u64::MAX;
/// In the place of an offset: a frame without data.
const PAUSE: u64 = u64::MAX - 1;

/// Makes the stream. Frames must be given in ascending order; their data is not copied.
#[derive(Debug)]
pub struct Encoder {
    hash: blake3::Hasher,
    frames: u64,
    reached: u64,
}

impl Encoder {
    /// An encoder, and the header to send first. `size` is `None` when it will be known at the end only.
    pub fn new(size: Option<u64>) -> (Self, Bytes) {
        let mut header = BytesMut::with_capacity(HEADER_BYTES);
        header.put_slice(&MAGIC);
        header.put_u64_le(size.unwrap_or(UNKNOWN));
        header.put_u32_le(crc32c::crc32c(&header));
        let mut hash = blake3::Hasher::new();
        hash.update(&header);
        (Self { hash, frames: 0, reached: 0 }, header.freeze())
    }

    /// The head to send before `data`, which lies at `offset`.
    ///
    /// # Errors
    /// `Internal` when the frame is empty, longer than [`FRAME_BYTES_MAX`] or goes back: a bug of the caller.
    pub fn frame(&mut self, offset: u64, data: &[u8]) -> Result<Bytes> {
        let length = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let end = offset.checked_add(u64::from(length));
        let (Some(end), 1..=FRAME_BYTES_MAX, true) = (end, data.len(), offset >= self.reached) else {
            let message = format!("a frame of {length} bytes at {offset} after {}", self.reached);
            return Err(Error::internal("bad-sparse-frame", message));
        };
        let head = frame_head(offset, length, data);
        self.hash.update(&head);
        self.hash.update(data);
        self.frames += 1;
        self.reached = end;
        Ok(head)
    }

    /// What is sent so that a reader does not take a sender with nothing to send for one that is gone.
    pub fn pause(&mut self) -> Bytes {
        let head = frame_head(PAUSE, 0, &[]);
        self.hash.update(&head);
        head
    }

    /// The end frame, of an image of `size` bytes.
    pub fn end(self, size: u64) -> Bytes {
        let mut tail = BytesMut::with_capacity(END_BYTES);
        tail.put_u64_le(size);
        tail.put_u64_le(self.frames);
        tail.put_slice(self.hash.finalize().as_bytes());
        let mut out = BytesMut::with_capacity(FRAME_HEAD_BYTES + END_BYTES);
        out.put_slice(&frame_head(UNKNOWN, 48, &tail));
        out.put_slice(&tail);
        out.freeze()
    }
}

fn frame_head(offset: u64, length: u32, data: &[u8]) -> Bytes {
    let mut head = BytesMut::with_capacity(FRAME_HEAD_BYTES);
    head.put_u64_le(offset);
    head.put_u32_le(length);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&head), data);
    head.put_u32_le(crc);
    head.freeze()
}

/// What a decoder found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The header, with the size when it is known beforehand.
    Start(Option<u64>),
    /// Data at an offset.
    Data(u64, Bytes),
    /// The end, with the size of the image.
    End(u64),
}

/// Reads the stream as its bytes come in.
#[derive(Debug)]
pub struct Decoder {
    hash: blake3::Hasher,
    state: State,
    size: Option<u64>,
    frames: u64,
    reached: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    Frames,
    Ended,
}

impl Default for Decoder {
    fn default() -> Self {
        Self { hash: blake3::Hasher::new(), state: State::Header, size: None, frames: 0, reached: 0 }
    }
}

impl Decoder {
    /// Takes the next event out of `input`; `None` when it needs more bytes. It never holds more than one frame.
    ///
    /// # Errors
    /// `Invalid` with code `bad-sparse-stream` when the bytes are not such a stream.
    pub fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>> {
        match self.state {
            State::Header => self.header(input),
            State::Frames => self.frame(input),
            State::Ended if input.is_empty() => Ok(None),
            State::Ended => Err(bad("bytes follow its end")),
        }
    }

    /// To be asked when the bytes end.
    ///
    /// # Errors
    /// `Invalid` with code `cut-upload` when the end frame has not come.
    pub fn finish(&self, left: &BytesMut) -> Result<()> {
        if self.state == State::Ended && left.is_empty() {
            return Ok(());
        }
        Err(Error::invalid("cut-upload", "the upload ended before the image did")
            .hint("nothing was imported: send it again"))
    }

    fn header(&mut self, input: &mut BytesMut) -> Result<Option<Event>> {
        let Some(header) = input.first_chunk::<HEADER_BYTES>() else {
            let seen = input.len().min(MAGIC.len());
            return if input[..seen] == MAGIC[..seen] { Ok(None) } else { Err(bad("it does not begin as one")) };
        };
        if header[..8] != MAGIC {
            return Err(bad("it does not begin as one"));
        }
        if crc32c::crc32c(&header[..16]) != u32::from_le_bytes([header[16], header[17], header[18], header[19]]) {
            return Err(bad("its header fails its checksum"));
        }
        self.hash.update(header);
        input.advance(8);
        let size = input.get_u64_le();
        input.advance(4);
        if size != UNKNOWN {
            if size > VOLUME_BYTES_MAX {
                return Err(bad("the image is larger than a volume may be"));
            }
            self.size = Some(size);
        }
        self.state = State::Frames;
        Ok(Some(Event::Start(self.size)))
    }

    fn frame(&mut self, input: &mut BytesMut) -> Result<Option<Event>> {
        let (head, offset, length, crc) = loop {
            let Some(head) = input.first_chunk::<FRAME_HEAD_BYTES>().copied() else { return Ok(None) };
            let (mut offset, mut length, mut crc) = (&head[..8], &head[8..12], &head[12..]);
            let (offset, length, crc) = (offset.get_u64_le(), length.get_u32_le() as usize, crc.get_u32_le());
            if offset != PAUSE {
                break (head, offset, length, crc);
            }
            if length != 0 || crc32c::crc32c(&head[..12]) != crc {
                return Err(bad("a pause that is none"));
            }
            self.hash.update(&head);
            input.advance(FRAME_HEAD_BYTES);
        };
        let ends = offset == UNKNOWN;
        if length == 0 || length > FRAME_BYTES_MAX || (ends && length != END_BYTES) {
            return Err(bad("a frame has an impossible length"));
        }
        let end = offset.saturating_add(length as u64);
        if !ends && (offset < self.reached || end > self.size.unwrap_or(VOLUME_BYTES_MAX)) {
            return Err(bad("a frame lies outside the image or goes back"));
        }
        if input.len() < FRAME_HEAD_BYTES + length {
            input.reserve(FRAME_HEAD_BYTES + length - input.len());
            return Ok(None);
        }
        input.advance(FRAME_HEAD_BYTES);
        let data = input.split_to(length).freeze();
        if crc32c::crc32c_append(crc32c::crc32c(&head[..12]), &data) != crc {
            return Err(bad("a frame fails its checksum"));
        }
        if ends {
            return self.end(data).map(Some);
        }
        self.hash.update(&head);
        self.hash.update(&data);
        self.frames += 1;
        self.reached = end;
        Ok(Some(Event::Data(offset, data)))
    }

    fn end(&mut self, mut tail: Bytes) -> Result<Event> {
        let (size, frames) = (tail.get_u64_le(), tail.get_u64_le());
        if frames != self.frames || tail[..] != self.hash.finalize().as_bytes()[..] {
            return Err(bad("its end does not match what came before"));
        }
        if size < self.reached || size > VOLUME_BYTES_MAX || self.size.is_some_and(|told| told != size) {
            return Err(bad("its end tells another size"));
        }
        self.state = State::Ended;
        Ok(Event::End(size))
    }
}

fn bad(what: &str) -> Error {
    Error::invalid("bad-sparse-stream", format!("the body is not a clonegate sparse stream: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(size: Option<u64>) -> Vec<u8> {
        let (mut encoder, header) = Encoder::new(size);
        let mut stream = header.to_vec();
        stream.extend_from_slice(&encoder.pause());
        for (offset, data) in [(0u64, &b"boot"[..]), (512, b"x"), (4096, b"the rest")] {
            stream.extend_from_slice(&encoder.frame(offset, data).unwrap());
            stream.extend_from_slice(data);
        }
        stream.extend_from_slice(&encoder.pause());
        stream.extend_from_slice(&encoder.pause());
        stream.extend_from_slice(&encoder.end(8192));
        stream
    }

    fn read(stream: &[u8], step: usize) -> Result<Vec<Event>> {
        let (mut decoder, mut input, mut events) = (Decoder::default(), BytesMut::new(), Vec::new());
        for part in stream.chunks(step) {
            input.extend_from_slice(part);
            while let Some(event) = decoder.next(&mut input)? {
                events.push(event);
            }
        }
        decoder.finish(&input)?;
        Ok(events)
    }

    #[test]
    fn a_stream_arrives_whole_however_it_is_cut_up() {
        for size in [None, Some(8192)] {
            for step in [1, 7, 4096] {
                let events = read(&sample(size), step).unwrap();
                assert_eq!(events.first(), Some(&Event::Start(size)));
                assert_eq!(events[2], Event::Data(512, Bytes::from_static(b"x")));
                assert_eq!(events.last(), Some(&Event::End(8192)));
            }
        }
    }

    #[test]
    fn no_cut_and_no_flipped_bit_passes() {
        let stream = sample(Some(8192));
        for at in 0..stream.len() {
            assert!(read(&stream[..at], 64).is_err(), "cut at {at}");
            for bit in 0..8 {
                let mut bad = stream.clone();
                bad[at] ^= 1 << bit;
                assert!(read(&bad, 64).is_err(), "byte {at} bit {bit}");
            }
        }
        let mut longer = stream;
        longer.push(0);
        assert!(read(&longer, 4096).is_err());
    }

    #[test]
    fn frames_that_go_back_or_past_the_end_are_refused() {
        let (mut encoder, _) = Encoder::new(Some(512));
        assert!(encoder.frame(0, &[1; 16]).is_ok());
        assert!(encoder.frame(8, &[1; 16]).is_err());
        assert!(encoder.frame(100, &[]).is_err());
        let (mut encoder, header) = Encoder::new(Some(512));
        let mut stream = header.to_vec();
        stream.extend_from_slice(&encoder.frame(510, b"four").unwrap());
        stream.extend_from_slice(b"four");
        stream.extend_from_slice(&encoder.end(512));
        assert_eq!(read(&stream, 4096).unwrap_err().code(), "bad-sparse-stream");
    }
}
