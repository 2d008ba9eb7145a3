//! Every bound of the program in one place, each with its unit and what happens when it is reached.

/// Longest user-given name, bytes; a longer one is refused (`bad-name`).
pub const NAME_BYTES_MAX: usize = 63;
/// Largest stored record inside an envelope, bytes; a larger one is corrupt, whatever it says.
pub const RECORD_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Deltas that a base takes unless the operator says otherwise; the next clone goes to a new base.
pub const SLOTS_PER_BASE: u32 = 128;
/// Most slots that an operator may give a base.
pub const SLOTS_PER_BASE_MAX: u32 = 4096;
/// Largest volume, bytes (64 TiB); a larger image is refused.
pub const VOLUME_BYTES_MAX: u64 = 64 << 40;
/// Largest object that is read in one piece, bytes; larger ones are read by ranges.
pub const OBJECT_BYTES_MAX: u64 = 256 << 20;
/// Packs that the note of an image being made names (8 TiB of stored frames); what is left of those beyond is found by `fsck` only.
pub const MAKING_PACKS_MAX: usize = 512 * 1024;
/// Notes of images being made that are read in one datastore; of those beyond nobody knows whose they are.
pub const MAKINGS_READ_MAX: usize = 256;
/// Chunk of a packed base unless import says otherwise, bytes.
pub const CHUNK_BYTES: u32 = 64 * 1024;
/// Largest pack, bytes of stored frames.
pub const PACK_BYTES_MAX: u32 = 64 * 1024 * 1024;
/// Largest body of one commit record, bytes; larger bursts are split.
pub const COMMIT_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Extents of one commit record; a batch with more is split.
pub const COMMIT_EXTENTS_MAX: usize = 64 * 1024;
/// Objects that one unlink names; garbage beyond that waits for the next.
pub const UNLINK_OBJECTS_MAX: usize = 4096;
/// Blocks of one folded segment (64 MiB); a commit record or segment with more is corrupt.
pub const SEGMENT_BLOCKS_MAX: u32 = 16 * 1024;
/// Highest epoch, sequence, segment number, change or journal mark of a clone; a name or record with a higher one is corrupt.
pub const LOG_NUMBER_MAX: u64 = 1 << 60;
/// Epochs of a clone that nobody is known to have claimed, between one that was opened or claimed and the next; when there are more, the next is corrupt.
pub const EPOCHS_UNCLAIMED_MAX: u64 = 256;
/// Snapshots of one clone; one more is refused.
pub const SNAPSHOTS_MAX: usize = 64;
/// Objects that a checkpoint names; a larger one is corrupt.
pub const CHECKPOINT_OBJECTS_MAX: u32 = 16 * 1024 * 1024;
/// Runs in a checkpoint (1 GiB of table); a larger one is corrupt.
pub const CHECKPOINT_RUNS_MAX: u32 = 64 * 1024 * 1024;
/// Commit records after the newest checkpoint before the next checkpoint is due.
pub const CHECKPOINT_RECORDS: u64 = 256;
/// Bytes of commit records after the newest checkpoint before the next checkpoint is due.
pub const CHECKPOINT_BYTES: u64 = 64 * 1024 * 1024;
/// Ranges in one HTTP request; a request with more is answered with the whole volume refused (416).
pub const HTTP_RANGES_MAX: usize = 16;
/// Header bytes of one HTTP request; more closes the connection with 431.
pub const HTTP_HEADER_BYTES_MAX: usize = 16 * 1024;
/// Body bytes of one control request; more is 413.
pub const HTTP_CONTROL_BODY_BYTES_MAX: usize = 1024 * 1024;
/// Answers to changes with an `Idempotency-Key` that are remembered; the oldest goes first.
pub const HTTP_ANSWERS_KEPT_MAX: usize = 1000;
/// Bytes of their bodies; the oldest go first.
pub const HTTP_ANSWERS_KEPT_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Body bytes of one answer that is remembered; of a larger one is known only how it ended, and a repeat is told so.
pub const HTTP_ANSWER_KEPT_BYTES_MAX: usize = 16 * 1024 * 1024;
/// Body bytes of one PUT to a disk; more is 413.
pub const HTTP_WRITE_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// First bytes of the body of a PUT, which are read whatever others have sent; for those beyond, the body waits for room.
pub const HTTP_PUT_UNCOUNTED_BYTES: u64 = 64 * 1024;
/// Bytes of the body of a PUT for which room is taken at a time.
pub const HTTP_PUT_WINDOW_BYTES: u64 = 256 * 1024;
/// Bytes that a streaming read asks of a device at a time.
pub const READ_WINDOW_BYTES: u64 = 1024 * 1024;
/// Largest NBD request payload, bytes; also the maximum block size that we announce.
pub const NBD_PAYLOAD_BYTES_MAX: u32 = 32 * 1024 * 1024;
/// Options of one NBD handshake; one more closes the connection.
pub const NBD_OPTIONS_MAX: u32 = 1000;
/// Data of one NBD option, bytes; a longer one is skipped and refused (`ERR_TOO_BIG`).
pub const NBD_OPTION_BYTES_MAX: u32 = 64 * 1024;
/// Data of all options of one NBD handshake, bytes; more closes the connection.
pub const NBD_HANDSHAKE_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// Exports in one NBD list; the rest is left out.
pub const NBD_LISTED_MAX: usize = 10_000;
/// Requests of one NBD connection that wait for their device; more are not read from the socket until some are done.
pub const NBD_WAITING_MAX: usize = 256;
/// Extents in one NBD status reply; the client asks again for the rest.
pub const NBD_STATUS_EXTENTS_MAX: usize = 4096;
/// Clones created by one request.
pub const CREATE_COUNT_MAX: u32 = 10_000;
/// Largest chunk of a packed base, bytes; an index that says more is corrupt.
pub const CHUNK_BYTES_MAX: u32 = 1024 * 1024;
/// Chunks in one boot set (2 GiB of 64 KiB chunks); recording stops there.
pub const BOOT_SET_CHUNKS_MAX: u32 = 32 * 1024;
/// Files that are read out of volumes at once (`/v1/clones/…/files`); more wait.
pub const FILE_READERS_MAX: usize = 32;
/// Names listed or searched in one directory of a volume; those after are not seen.
pub const FILE_NAMES_MAX: usize = 10_000;
/// Longest path of a file in a volume, bytes; a longer one is refused (`bad-path`).
pub const FILE_PATH_BYTES_MAX: usize = 4096;
/// Jobs of one home; the oldest that are over go first, and one more is refused when all of these are under way.
pub const JOBS_KEPT_MAX: usize = 1000;
/// How long a job that is over is kept, milliseconds (14 days).
pub const JOB_KEPT_MS: u64 = 14 * 24 * 3_600_000;
/// Longest text of a job (what was asked for, cursor, result), bytes; a longer one is refused.
pub const JOB_TEXT_BYTES_MAX: usize = 1024 * 1024;
/// Jobs that one gateway does at once; more wait.
pub const JOBS_AT_ONCE: usize = 4;
/// Labels of one clone. More are refused: each is in every question to a policy.
pub const LABELS_MAX: usize = 64;
/// Bytes of one label, key and value. A longer one is refused.
pub const LABEL_BYTES_MAX: usize = 2048;
/// Free user-data, or an unattend.xml, of one identity, bytes; more is refused (`bad-identity`).
pub const IDENTITY_USER_DATA_BYTES_MAX: usize = 64 * 1024;
/// One identity with all that is in it, bytes as JSON; more is refused (`bad-identity`).
pub const IDENTITY_BYTES_MAX: usize = 256 * 1024;
/// Users of one identity; more are refused (`bad-identity`).
pub const IDENTITY_USERS_MAX: usize = 64;
/// SSH keys, groups, addresses or name servers in one list of an identity; more are refused (`bad-identity`).
pub const IDENTITY_LIST_MAX: usize = 64;
/// One SSH key or other text in an identity, bytes; more is refused (`bad-identity`).
pub const IDENTITY_TEXT_BYTES_MAX: usize = 4096;
/// Network cards of one identity; more are refused (`bad-identity`).
pub const IDENTITY_CARDS_MAX: usize = 16;
/// Size of an identity disk; what is in one is bounded to well below it.
pub const IDENTITY_DISK_BYTES: u64 = 4 * 1024 * 1024;
/// Longest name of a host, bytes; one label has at most 63.
pub const HOST_NAME_BYTES_MAX: usize = 253;
/// How long the audit log is kept, milliseconds (90 days); whole days go.
pub const AUDIT_KEPT_MS: u64 = 90 * 24 * 3_600_000;
/// Objects of the audit log; beyond it the oldest days go.
pub const AUDIT_OBJECTS_MAX: usize = 200_000;
/// Entries of one object of the audit log; more wait for the next.
pub const AUDIT_BATCH_MAX: usize = 512;
/// Events that a gateway keeps for those who listen; a slower one is told that it missed some.
pub const EVENTS_KEPT_MAX: usize = 4096;
