//! namegate among programs that others wrote: name servers above it, resolver libraries and tools below it, and a server
//! that misbehaves.

mod answers;
mod clients;
mod compare;
mod rogue;
mod servers;
mod zone;

use libtest_mimic::Trial;

pub fn trials() -> Vec<Trial> {
    answers::trials().into_iter().chain(clients::trials()).chain(rogue::trials()).collect()
}
