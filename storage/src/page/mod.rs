//! The columnar page: kept traces of one tenant, encoded once.
