/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * HTTP site: which paths there are, and what is answered. Everything that depends on the daemon's state is
 * put into words once for each state, however many ask.
 */

#include <stdbool.h>
#include <stdint.h>

#include "metrics_text.h"

struct MHD_Response;
struct http_site;
struct state;

struct http_answer {
    unsigned status;
    struct MHD_Response *response; /* the site's; valid until the next state is set */
};

/* Answers that need no state. */
enum http_refusal {
    HTTP_REFUSE_HOST,
    HTTP_REFUSE_PATH,
    HTTP_REFUSE_METHOD,
    HTTP_REFUSE_BODY,
    HTTP_REFUSE_SILENCE, /* the loop doesn't answer */
    HTTP_REFUSE_MEMORY,
    _HTTP_REFUSALS,
};

/* NULL: out of memory. */
struct http_site *http_site_new(void);
struct http_site *http_site_free(struct http_site *site);

struct http_answer http_site_refuse(const struct http_site *site, enum http_refusal refusal);

/* Whether there is such a path, and whether its answer needs a state. */
bool http_site_find(const struct http_site *site, const char *path, bool *ret_needs_state);

/* Takes the state over. */
void http_site_set_state(struct http_site *site, struct state *state, uint64_t now_ns);

/* When that was; 0: there is none. */
uint64_t http_site_state_ns(const struct http_site *site);

/* For a path that there is, with the state, where it needs one, set. `accept` may be NULL. */
struct http_answer http_site_answer(struct http_site *site, const char *path, const char *accept,
                                    const struct http_stats *stats);
