//! The Kubernetes side: a mounted directory of objects, read into the engine's [`World`](crate::engine::world::World).
//!
//! - [`tree`]: YAML and JSON with the place of every value
//! - [`fields`]: reads a tree field by field and collects what is wrong with it
//! - [`manifest`]: objects from trees, and what still holds of those that are wrong
//! - [`snapshot`]: all files of a directory as one generation

pub mod tree;
