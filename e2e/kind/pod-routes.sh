#!/bin/sh
# The node's pod network: a bridge for the node's own pod subnet, and a route to each other node's. Runs in the image localhost/cni:dev.
last=
while :; do
    kubectl get nodes -o 'jsonpath={range .items[*]}{.metadata.name} {.spec.podCIDR} {.status.addresses[?(@.type=="InternalIP")].address}{"\n"}{end}' >/tmp/nodes || {
        sleep 1
        continue
    }
    while read -r name cidr ip; do
        [ -n "$ip" ] || continue
        if [ "$name" != "$NODE_NAME" ]; then
            ip route replace "$cidr" via "$ip"
        elif [ "$last" != "$cidr" ]; then
            printf '{"cniVersion":"0.4.0","name":"pods","plugins":[{"type":"bridge","bridge":"cni0","isGateway":true,"isDefaultGateway":true,"hairpinMode":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"%s"}]]}},{"type":"portmap","capabilities":{"portMappings":true}}]}' "$cidr" >/etc/cni/net.d/.new &&
                mv /etc/cni/net.d/.new /etc/cni/net.d/10-pods.conflist && last=$cidr
        fi
    done </tmp/nodes
    sleep 5
done
