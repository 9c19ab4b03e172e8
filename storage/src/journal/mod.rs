//! The journal: every acknowledged span and every verdict, in durable, compressed frames.
