/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/*
 * Where the status page and the metrics are served, as people write it: "127.0.0.1:9470", "[::1]:9470" or
 * "off". Numbers only: a name would need a resolver, and might mean more than one address. Pure.
 */

#include <stdbool.h>
#include <stdint.h>

#define HTTP_ADDRESS_ACCEPTS "an address and a port such as 127.0.0.1:9470 or [::1]:9470, or off"
#define HTTP_ADDRESS_TEXT_MAX 64
#define HTTP_DEFAULT_PORT 9470 /* of the first GPU's daemon */

struct http_address {
    bool off;
    bool is_v6;
    uint8_t host[16]; /* in network order; 4 bytes of it without is_v6 */
    uint16_t port;
};

/* 0 or -EINVAL. Port 0 is any that is free. */
int http_address_parse(const char *text, struct http_address *ret);

/* On this machine only, for the daemon of that GPU; off where no such port is left. */
struct http_address http_address_default(unsigned gpu_index);

/* As it is parsed. */
const char *http_address_format(char buf[static HTTP_ADDRESS_TEXT_MAX], const struct http_address *address);

/* Whether only this machine can reach it. */
bool http_address_is_local(const struct http_address *address);
