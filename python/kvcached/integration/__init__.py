# SPDX-License-Identifier: Apache-2.0
"""What engines use: one package for each, with the functions that its plug-in stands on in `interfaces`."""
