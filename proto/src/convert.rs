//! Wire to domain and back.
