// Package v20170312 takes the place of the Tencent cloud's API client in flannel's backend
// "tencent-vpc". Every call fails and says so: this flannel can't use that backend.
package v20170312

import "errors"

var errLeftOut = errors.New("this flannel was built without the Tencent cloud's SDK: choose another backend")

// Filter chooses route tables.
type Filter struct {
	Name   *string
	Values []*string
}

// Route is an entry of a route table.
type Route struct {
	RouteId              *uint64
	DestinationCidrBlock *string
	GatewayType          *string
	GatewayId            *string
	RouteType            *string
	Enabled              *bool
}

// RouteTable is a table of routes.
type RouteTable struct {
	RouteTableId *string
	RouteSet     []*Route
}

// DescribeRouteTablesRequest asks for route tables.
type DescribeRouteTablesRequest struct{ Filters []*Filter }

// DescribeRouteTablesResponse holds them.
type DescribeRouteTablesResponse struct {
	Response *struct{ RouteTableSet []*RouteTable }
}

// CreateRoutesRequest asks for new routes.
type CreateRoutesRequest struct {
	RouteTableId *string
	Routes       []*Route
}

// CreateRoutesResponse is its answer.
type CreateRoutesResponse struct{}

// DeleteRoutesRequest asks for the end of routes.
type DeleteRoutesRequest struct {
	RouteTableId *string
	Routes       []*Route
}

// DeleteRoutesResponse is its answer.
type DeleteRoutesResponse struct{}

// Client would talk to the cloud.
type Client struct{}

// NewClientWithSecretId fails: there is no SDK.
func NewClientWithSecretId(_, _, _ string) (*Client, error) { return nil, errLeftOut }

// NewDescribeRouteTablesRequest gives an empty request.
func NewDescribeRouteTablesRequest() *DescribeRouteTablesRequest {
	return &DescribeRouteTablesRequest{}
}

// NewCreateRoutesRequest gives an empty request.
func NewCreateRoutesRequest() *CreateRoutesRequest { return &CreateRoutesRequest{} }

// NewDeleteRoutesRequest gives an empty request.
func NewDeleteRoutesRequest() *DeleteRoutesRequest { return &DeleteRoutesRequest{} }

// DescribeRouteTables fails. It works on a nil client too: flannel ignores the error of making one.
func (*Client) DescribeRouteTables(*DescribeRouteTablesRequest) (*DescribeRouteTablesResponse, error) {
	return nil, errLeftOut
}

// CreateRoutes fails.
func (*Client) CreateRoutes(*CreateRoutesRequest) (*CreateRoutesResponse, error) {
	return nil, errLeftOut
}

// DeleteRoutes fails.
func (*Client) DeleteRoutes(*DeleteRoutesRequest) (*DeleteRoutesResponse, error) {
	return nil, errLeftOut
}
