//! Domain names as types.
