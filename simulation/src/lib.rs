//! Spandrel's node in a deterministic simulation: seeded time, disk and faults.
