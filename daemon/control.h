/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Control: the handlers of the control socket, as request.h says. */

#include "peer.h"

int control_list(struct peer *peer, struct message *message);
int control_info(struct peer *peer, struct message *message);
int control_why(struct peer *peer, struct message *message);
int control_reload(struct peer *peer, struct message *message);
int control_set_limit(struct peer *peer, struct message *message);
int control_delete(struct peer *peer, struct message *message);
