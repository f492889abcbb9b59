//! The back-end's own requests, for a front-end that provides a channel for them.

use super::front_checks;
use super::stage::{PATIENCE, Stage};
use crate::backend::Script;
use crate::conform::Finding;
use crate::daemon::poll_until;
use crate::wire::request;

front_checks! {
    "requests/config-change", Robust, Control,
    "vhost-user, VHOST_USER_SET_BACKEND_REQ_FD, VHOST_USER_GET_CONFIG",
    "A front-end with a back-end channel reads the configuration again after the back-end reports a \
     change.", config_change;
}

fn config_change(stage: &mut Stage) -> Result<(), Finding> {
    let act = stage.play(Script::default())?;
    act.running()?;
    let count = |wanted: u32| act.last().iter().filter(|message| message.request == wanted).count();
    if count(request::SET_BACKEND_REQ_FD) == 0 {
        return Err(Finding::NotOffered("it provides no back-end channel".to_owned()));
    }
    for status in [0, 1] {
        let before = count(request::GET_CONFIG);
        let mut config = Script::default().config;
        config[6] = status;
        act.backend.change_config(config);
        let read = poll_until(PATIENCE, || (count(request::GET_CONFIG) > before).then_some(()));
        read.ok_or_else(|| Finding::Fail(format!("it does not read its configuration within {PATIENCE:?}")))?;
    }
    stage.echo(&act, 3)
}
