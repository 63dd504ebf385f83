/* SPDX-License-Identifier: Apache-2.0 */

/* Addresses for the status page, from text and back. */

#include "http_address.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/parse.h"

#define LOOPBACK_NET 127

static const uint8_t v6_loopback[16] = {[15] = 1};

static int parse_host(char *host, struct http_address *ret)
{
    size_t length = strlen(host);

    ret->is_v6 = length >= 2 && host[0] == '[' && host[length - 1] == ']';
    if (!ret->is_v6)
        return inet_pton(AF_INET, host, ret->host) == 1 ? 0 : -EINVAL;
    host[length - 1] = '\0';
    return inet_pton(AF_INET6, host + 1, ret->host) == 1 ? 0 : -EINVAL;
}

int http_address_parse(const char *text, struct http_address *ret)
{
    const char *colon = strrchr(text, ':');
    size_t length = colon ? (size_t)(colon - text) : 0;
    struct http_address address = {0};
    char host[HTTP_ADDRESS_TEXT_MAX];
    uint64_t port;

    if (strcmp(text, "off") == 0) {
        *ret = (struct http_address){.off = true};
        return 0;
    }
    if (length == 0 || length >= sizeof(host) || parse_u64(colon + 1, &port) < 0 || port > UINT16_MAX)
        return -EINVAL;
    memcpy(host, text, length);
    host[length] = '\0';
    if (parse_host(host, &address) < 0)
        return -EINVAL;
    address.port = (uint16_t)port;
    *ret = address;
    return 0;
}

struct http_address http_address_default(unsigned gpu_index)
{
    if (gpu_index > UINT16_MAX - HTTP_DEFAULT_PORT)
        return (struct http_address){.off = true};
    return (struct http_address){.host = {LOOPBACK_NET, 0, 0, 1},
                                 .port = (uint16_t)(HTTP_DEFAULT_PORT + gpu_index)};
}

const char *http_address_format(char buf[static HTTP_ADDRESS_TEXT_MAX], const struct http_address *address)
{
    char host[INET6_ADDRSTRLEN];

    if (address->off)
        return strcpy(buf, "off");
    inet_ntop(address->is_v6 ? AF_INET6 : AF_INET, address->host, host, sizeof(host));
    snprintf(buf, HTTP_ADDRESS_TEXT_MAX, address->is_v6 ? "[%s]:%u" : "%s:%u", host, address->port);
    return buf;
}

bool http_address_is_local(const struct http_address *address)
{
    if (address->is_v6)
        return memcmp(address->host, v6_loopback, sizeof(v6_loopback)) == 0;
    return address->host[0] == LOOPBACK_NET;
}
