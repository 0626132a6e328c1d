#!/usr/bin/env bash
# Writes the CustomResourceDefinition of CiliumClusterwideNetworkPolicy, made of that of CiliumNetworkPolicy: lines that
# end in "# namespaced" are left out, and those that begin with "#clusterwide" put in.
#
#     helm/crds.sh > helm/namegate/files/crds/ciliumclusterwidenetworkpolicies.yaml
set -euo pipefail
cd "$(dirname "$0")/namegate/files/crds"
sed -e '/# namespaced$/d' -e 's/#clusterwide //' \
	-e 's/CiliumNetworkPolicy/CiliumClusterwideNetworkPolicy/g' -e 's/ciliumnetworkpolic/ciliumclusterwidenetworkpolic/g' \
	-e 's/scope: Namespaced/scope: Cluster/' -e 's/shortNames: .*/shortNames: [ccnp]/' \
	-e 's/for pods of one namespace/for pods of all namespaces/' \
	-e 's/The clusterwide kind is made of this file by/Change ciliumnetworkpolicies.yaml, this is made by/' \
	ciliumnetworkpolicies.yaml
