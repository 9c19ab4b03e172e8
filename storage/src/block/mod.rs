//! Block files: the pages, locators and summaries of one time bucket.
