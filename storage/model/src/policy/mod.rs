//! Tail-sampling policies: parsed, compiled, observed span by span, decided on compact facts.
