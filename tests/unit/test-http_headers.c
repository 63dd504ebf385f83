/* SPDX-License-Identifier: Apache-2.0 */
#include "http_headers.h"

#include "base/arith.h"
#include "test.h"

TEST(hosts_of_this_machine)
{
    static const char *const hosts[] = {"localhost",      "LocalHost:80",   "127.0.0.1",
                                        "127.0.0.1:9470", "127.10.200.255", "[::1]",
                                        "[::1]:9470",     "localhost:",     "127.0.0.1:65535"};

    for (size_t i = 0; i < ARRAY_SIZE(hosts); i++)
        if (!http_host_is_local(hosts[i]))
            test_fail(__FILE__, __LINE__, "\"%s\" is foreign", hosts[i]);
}

TEST(foreign_hosts)
{
    static const char *const hosts[] = {
        "",
        "evil.example",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "127.0.0.1x",
        "1.127.0.1",
        "evil.example:9470",
        "localhost:80:80",
        "localhost:8o",
        "localhost:655350",
        "[::1",
        "::1",
        "[::2]",
        "[::1]x",
        "xlocalhost",
        "10.0.0.1",
        "127.0.0.1:80/../",
        "127",
        "127x.0.0.1",
        "127.1111111111111111111",
    };

    for (size_t i = 0; i < ARRAY_SIZE(hosts); i++)
        if (http_host_is_local(hosts[i]))
            test_fail(__FILE__, __LINE__, "\"%s\" is this machine", hosts[i]);
}

TEST(who_wants_openmetrics)
{
    static const char *const accepts[] = {
        "application/openmetrics-text",
        "application/openmetrics-text; version=1.0.0",
        "text/plain;q=0.5,application/openmetrics-text;version=\"1.0.0\";q=0.5",
        "application/openmetrics-text;version=1.0.0;q=0.9,application/openmetrics-text;version=0.0.1;q=0.75",
        "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
        " Application/OpenMetrics-Text ; Q=0.9 ; VERSION=1.0.0 , text/plain ; q=0.899",
        ",,application/openmetrics-text;;",
        "application/openmetrics-text;escaping=allow-utf-8;version=1.0.0;q=0.6,text/plain;q=0.2",
    };

    for (size_t i = 0; i < ARRAY_SIZE(accepts); i++)
        if (!http_accepts_openmetrics(accepts[i]))
            test_fail(__FILE__, __LINE__, "\"%s\" wants text", accepts[i]);
}

TEST(who_wants_text)
{
    static const char *const accepts[] = {
        "",
        "*/*",
        "text/plain",
        "text/html,application/xhtml+xml,*/*;q=0.8",
        "application/openmetrics-text;q=0",
        "application/openmetrics-text;q=0.4,text/plain;q=0.5",
        "application/openmetrics-text;version=0.0.1",
        "application/openmetrics-text;version=2.0.0",
        "application/openmetrics-text;q=1.1",
        "application/openmetrics-text;q=0.0001",
        "application/openmetrics-text;q=x",
        "application/openmetrics-text;q=",
        "application/openmetrics-textual",
        "application/openmetrics",
        ";",
    };

    for (size_t i = 0; i < ARRAY_SIZE(accepts); i++)
        if (http_accepts_openmetrics(accepts[i]))
            test_fail(__FILE__, __LINE__, "\"%s\" wants OpenMetrics", accepts[i]);
}
