//! Every bound of the replicated settings, with its unit and its reason.

/// Milliseconds between two heartbeats of the leader: a quarter of the shortest election timeout, so that three may
/// be lost in a row before a follower stands for election.
pub const HEARTBEAT_MS: u64 = 100;
/// Shortest silence of the leader, in milliseconds, after which a follower stands for election. DESIGN.md section 4
/// promises failover within 3 s, 5 s when the victim leads Raft; the simulation measured a new leader after 1.35 to
/// 1.9 s with 400 to 800 ms.
pub const ELECTION_MIN_MS: u64 = 400;
/// Longest such silence in milliseconds: the spread of 400 ms keeps two followers from standing at once.
pub const ELECTION_MAX_MS: u64 = 800;
/// Longest wait of a proposal or of a linearizable read in milliseconds: two elections and some commits.
pub const PROPOSE_DEADLINE_MS: u64 = 5_000;
/// Pause before a proposal looks for a leader again, in milliseconds: one heartbeat, in which a leader announces
/// itself.
pub const LEADER_RETRY_MS: u64 = HEARTBEAT_MS;
/// Longest wait for one piece of a snapshot in milliseconds: at most [`SNAPSHOT_CHUNK_BYTES`], written once with an
/// fsync on a busy disk.
pub const SNAPSHOT_CHUNK_DEADLINE_MS: u64 = 5_000;
/// Longest wait for a whole snapshot in milliseconds: [`MAX_SNAPSHOT_BYTES`] at 10 MB/s.
pub const SNAPSHOT_DEADLINE_MS: u64 = 30_000;

/// Largest message between two nodes in bytes: the links carry at most 1 MiB (DESIGN.md section 4).
pub const MAX_MESSAGE_BYTES: usize = 1_048_576;
/// Largest encoded command in bytes: one entry must fit a message with room for the other fields, and hold a change
/// of all 4096 shards at once (about 330 KiB).
pub const MAX_COMMAND_BYTES: usize = 524_288;
/// Bytes of log entries after which an append message is closed; the entry that passes it may add
/// [`MAX_COMMAND_BYTES`], which stays below [`MAX_MESSAGE_BYTES`].
pub const MAX_APPEND_BYTES: usize = 458_752;
/// Bytes of a snapshot that one message carries: half a message, so that a piece does not hold the control link long.
pub const SNAPSHOT_CHUNK_BYTES: usize = 524_288;
/// Largest snapshot in bytes that is accepted from a peer: [`MAX_HOLDERS`] records of about 32 bytes, with as much
/// again for the rest, rounded up.
pub const MAX_SNAPSHOT_BYTES: usize = 268_435_456;
/// Entries of one append message: a node that was away catches up in few messages, and no message is long to encode.
pub const MAX_APPEND_ENTRIES: u64 = 64;
/// Entries after which a snapshot is taken: replaying as many at start takes milliseconds.
pub const SNAPSHOT_EVERY_ENTRIES: u64 = 512;
/// Entries kept below a snapshot: a node that was away for a few minutes needs no snapshot.
pub const LOG_KEPT_ENTRIES: u64 = 128;
/// Bytes of the log database's page cache: the log is some MiB at most and read at start and by slow followers only.
pub const LOG_CACHE_BYTES: usize = 2_097_152;

/// Most nodes of a cluster: each is a learner with the state locally, fed by the leader.
pub const MAX_NODES: usize = 256;
/// Most shards of a cluster (API.md, `--shards`).
pub const MAX_SHARDS: u16 = 4_096;
/// Most copies of a shard: more than 7 cost an ack more than they protect.
pub const MAX_REPLICATION: u8 = 7;
/// Shortest retention in seconds: one time bucket of block files (1 h).
pub const MIN_RETENTION_SECONDS: u64 = 3_600;
/// Longest retention in seconds: ten years; above it a typing error is likelier than a wish.
pub const MAX_RETENTION_SECONDS: u64 = 315_360_000;
/// Largest policy document in bytes: some thousand policies; half of [`MAX_COMMAND_BYTES`].
pub const MAX_POLICY_BYTES: usize = 262_144;
/// Most attribute keys in the index allowlist (API.md: a cap on the number of indexed keys).
pub const MAX_INDEXED_KEYS: usize = 64;
/// Longest attribute key in the index allowlist, in bytes: names of the semantic conventions stay below 64.
pub const MAX_KEY_BYTES: usize = 256;
/// Longest address and longest zone name in bytes: a DNS name has at most 253, a port six more.
pub const MAX_ADDRESS_BYTES: usize = 260;
/// Most records of who holds which (shard, bucket, term): a week of hourly buckets for all 4096 shards, with room
/// for changed terms. At about 100 bytes each in memory.
pub const MAX_HOLDERS: usize = 1_048_576;
/// Most changes of holders in one command, so that it stays below [`MAX_COMMAND_BYTES`].
pub const MAX_HOLDER_CHANGES: usize = 4_096;
/// Most lives of a node that the cluster may not have confirmed: starts in a row that ended before the node had
/// registered. A node that has had so many uses the last one again.
pub const MAX_EARLIER_LIVES: usize = 32;
/// Most join tokens that are valid at once: each lives for a day, and one lets any number of nodes join.
pub const MAX_JOIN_TOKENS: usize = 64;
/// Voters of a cluster of three or four nodes: one may fail.
pub(crate) const FEW_VOTERS: usize = 3;
/// Voters of a larger one: two may fail. More make each commit wait for more nodes.
pub(crate) const MOST_VOTERS: usize = 5;
