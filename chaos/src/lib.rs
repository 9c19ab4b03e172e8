//! Spandrel under real faults: real processes, real kills, and an oracle for the promises.
