//! Machine library.
