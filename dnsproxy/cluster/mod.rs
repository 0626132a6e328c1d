//! The Kubernetes side: a mounted directory of objects, read into the engine's [`World`](crate::engine::world::World).
//!
//! - [`snapshot`]: all files of a directory as one generation; what is wrong in it and what holds in its place
//! - [`files`]: the files as octets
//! - [`manifest`]: objects from trees, and what still holds of those that are wrong
//! - [`fields`]: reads a tree field by field and collects what is wrong with it
//! - [`tree`]: YAML and JSON with the place of every value

pub mod fields;
pub mod files;
pub mod manifest;
pub mod snapshot;
pub mod tree;
