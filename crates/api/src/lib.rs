//! REST API of the control plane (port 5681/5682), as Kuma 2.14.3 speaks it on Universal.
//!
//! [`router`] is the whole of it; [`managers`] builds the commands of writes with side effects and is also used at start.

pub mod auth;
mod body;
pub mod cluster;
mod destinations;
mod error;
mod feed;
mod gui;
mod inspect;
mod interest;
mod list;
pub mod managers;
mod read;
mod reading;
mod route;
mod router;
pub mod secrets;
mod state;
mod system;
mod tokens;
mod watch;
mod write;

pub use error::{ApiError, Parameter};
pub use gui::Gui;
pub use reading::{DEFAULT_WAIT, KNOWN_LEADER, LAST_CONTACT, MAX_WAIT, READ};
pub use router::{IDEMPOTENCY_KEY, OverTls, REVISION, router};
pub use state::{ApiOptions, ApiState, ConfigInspector, Index, InspectError, now};
pub use system::CLUSTER_ID;
