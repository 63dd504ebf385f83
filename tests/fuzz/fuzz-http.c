/* SPDX-License-Identifier: Apache-2.0 */

/*
 * What strangers say of the status page: addresses, and the two headers that are looked into. An address that
 * is accepted is the same when it is written and read again; a host of this machine is made of the letters
 * that one has.
 */

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "http_address.h"
#include "http_headers.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_address(const char *text)
{
    char first[HTTP_ADDRESS_TEXT_MAX], again[HTTP_ADDRESS_TEXT_MAX];
    struct http_address address;

    if (http_address_parse(text, &address) < 0)
        return;
    http_address_format(first, &address);
    if (http_address_parse(first, &address) < 0 || strcmp(first, http_address_format(again, &address)) != 0)
        abort();
}

static void check_host(const char *text)
{
    static const char letters[] = "localhostLOCALHOST0123456789.:[]";

    if (http_host_is_local(text) && text[strspn(text, letters)] != '\0')
        abort();
}

static void check_accept(const char *text)
{
    if (http_accepts_openmetrics(text) && !strcasestr(text, "application/openmetrics-text"))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *text = malloc(size + 1);

    if (!text)
        return 0;
    memcpy(text, data, size);
    text[size] = '\0';
    check_address(text);
    check_host(text);
    check_accept(text);
    free(text);
    return 0;
}
